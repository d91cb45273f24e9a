"""Certificates for tests of TLS, made anew each time."""

import subprocess

from conftest import needs


def make(folder):
    """Fill a folder with a CA, what it signed (server for localhost, client), and `other`, signed by itself."""
    openssl = needs("openssl")

    def sign(name, subject, extension, *by):
        command = (f"req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -keyout {name}.key "
                   f"-out {name}.pem -addext keyUsage=digitalSignature,keyCertSign {extension}").split()
        subprocess.run([openssl, *command, "-subj", subject, *by], cwd=folder, check=True, capture_output=True)

    sign("ca", "/CN=test CA", "")
    by = ("-CA", "ca.pem", "-CAkey", "ca.key")
    sign("server", "/CN=collector", "-addext subjectAltName=DNS:localhost,DNS:collector.example.net", *by)
    sign("client", "/CN=midatagram", "-addext extendedKeyUsage=clientAuth", *by)
    sign("other", "/CN=other", "-addext subjectAltName=DNS:localhost")
    return folder
