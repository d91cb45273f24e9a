#!/bin/sh
# install.sh -- runs midatagram from this folder, tests it, or installs it.
#
# Plain sh is enough: there is one list of packages at a time and nothing to compute, and every machine that
# has Python has a sh.
#
# run and test use a virtual environment in .venv beside this file, always with the pinned packages, so that
# what runs is what was tested; once it is complete neither pip nor the network is asked. system prefers the
# distribution's own python3 and packages where they are installed: those get the distribution's updates.

set -eu

here=$(cd "$(dirname "$0")" && pwd)
venv=$here/.venv
example=$here/midatagram.conf.example
pythons=${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11 python3.10}
test_tools='pytest==9.2.0
pytest-timeout==2.4.0
pytest-xdist==3.8.0
hypothesis==6.168.5
pexpect==4.9.0
opensips==0.1.11
opensipscli==0.4.1
redis==8.1.0
uv==0.13.9
ruff==0.17.6
mypy==2.4.1'

usage() {
    cat <<END
usage: ./install.sh run [OPTION...]       start the server here, in the foreground, on midatagram.conf.example;
                                          options go to midatagram.py (-d logs each request and reply)
       ./install.sh test [ARGUMENT...]    install the test tools and run the tests; arguments go to pytest
       ./install.sh system [--prefix DIR] [--systemd]
                                          copy script, plug-ins and configuration to where a server expects
                                          them and print the lines for cron, supervisor and systemd
           --prefix DIR    /usr/local for the whole machine; any other DIR holds a private copy with its
                           configuration and run-time folder
           --systemd       write the systemd units too
                                          Run it again to upgrade: it keeps an edited configuration, and puts the
                                          new one beside it as FILE.new
       ./install.sh uninstall [--prefix DIR]
                                          remove what system wrote; keep edited files, logs and the user
PYTHON=PROGRAM chooses the Python.
END
}

say() {
    printf '%s\n' "$*"
}

die() {
    printf 'install.sh: %s\n' "$*" >&2
    exit 1
}

### Python and packages #######################################################

# Print the PEP 723 block of midatagram.py, the one place that names its Python and its packages.
script_block() {
    sed -n '/^# \/\/\/ script$/,/^# \/\/\/$/p' "$here/midatagram.py"
}

# Print the path of the first of $pythons that is new enough.
find_python() {
    minimum=$(script_block | sed -n 's/^# requires-python = ">=\(.*\)"$/\1/p')
    is_old='import sys; sys.exit(sys.version_info < tuple(map(int, sys.argv[1].split("."))))'
    for candidate in $pythons; do
        if "$candidate" -c "$is_old" "$minimum" 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    first=${pythons%% *}
    found=$("$first" --version 2>/dev/null) || found="no $first"
    die "Python $minimum or newer is needed, found $found; PYTHON=PROGRAM names another"
}

# Make the virtual environment $1 anew.
make_venv() {
    python=$(find_python)
    "$python" -c 'import ensurepip, venv' 2>/dev/null ||
        die "$python has no venv module: apt-get install python3-venv (Debian, Ubuntu)"
    say "making $1 with $("$python" --version)"
    "$python" -m venv --clear "$1" || die "cannot make the virtual environment $1"
}

# Print what stands in the virtual environment $1 once it has the packages $2: another Python needs them anew.
stamp() {
    "$1/bin/python" --version 2>/dev/null || say "no Python"
    say "$2"
}

# Have the packages $3 (one a line) in the virtual environment $1, whose file $2.txt tells what it got.
# shellcheck disable=SC2086 # the list of packages is meant to be split
provide() {
    [ "$(cat "$1/$2.txt" 2>/dev/null)" != "$(stamp "$1" "$3")" ] || return 0
    "$1/bin/python" -m pip --version >/dev/null 2>&1 || make_venv "$1"
    say "installing" $3
    "$1/bin/python" -m pip install --quiet --disable-pip-version-check --no-input $3 ||
        die "pip could not install these, see above (without a package index: apt-get install python3-gevent" \
            "python3-configobj python3-setproctitle, then python3 midatagram.py -f midatagram.conf.example)"
    stamp "$1" "$3" >"$1/$2.txt"
}

# Have the packages that midatagram.py names in the virtual environment $1.
provide_pinned() {
    pinned=$(script_block | sed -n 's/^# *"\(.*\)",\{0,1\}$/\1/p')
    [ -n "$pinned" ] || die "midatagram.py names no packages at its top"
    provide "$1" midatagram "$pinned"
}

### run and test ##############################################################

# Print the socket_name that the configuration $1 sets.
socket_of() {
    sed -n 's/^[[:space:]]*modparam( *"mi_datagram", *"socket_name", *"\([^"]*\)").*/\1/p' "$1" | tail -n 1
}

do_run() {
    provide_pinned "$venv"
    (announce "$@" 2>/dev/null &)
    exec "$venv/bin/python" "$here/midatagram.py" -f "$example" "$@"
}

# Print the socket and a line to try once this process, which becomes the server, answers at the socket that the
# server's options name; nothing if it never does.
announce() {
    "$venv/bin/python" -B - $$ "$here" "$example" "$@" <<'END'
import pathlib, sys, time

pid, here, example, *arguments = sys.argv[1:]
sys.path.insert(0, here)
stdout, sys.stdout = sys.stdout, sys.stderr  # where --help would go
import midatagram as mi

options = mi.server_parser().parse_args(["-f", example, *arguments])
place = mi.socket_of(options)
words = "hello world" if options.file == example else "which"
while pathlib.Path(f"/proc/{pid}/cmdline").read_bytes():  # a process that has ended has none
    time.sleep(0.05)
    try:
        if f"PID={pid} " in mi.ask(place, b":ps:\n", 1.0).decode():
            print(f"midatagram serves {place}; try it from another terminal, in {here}:", file=stdout)
            print(f"    .venv/bin/python midatagram.py call -s {place} {words}", file=stdout)
            break
    except OSError:
        pass
END
}

do_test() {
    provide_pinned "$venv"
    provide "$venv" test-tools "$test_tools"
    cd "$here"
    exec "$venv/bin/python" -m pytest "$@"
}

### system ####################################################################

do_system() {
    read_options "$@"
    have_owner
    choose_interpreter
    old=$("$launcher" --version 2>/dev/null) || old=''
    copy_files
    if [ "$units_wanted" = yes ] || [ -e "$units/midatagram.service" ]; then
        write_units
    fi
    remove_old
    mv "$written.new" "$written"
    "$launcher" -c -f "$etc/midatagram.conf" || die "$etc/midatagram.conf has a mistake, see above"
    print_lines
    [ -z "$old" ] || say "
# This replaced $old: what runs goes on as it was until it is started anew."
}

# Read the options of system and uninstall, and decide where everything is.
read_options() {
    prefix=/usr/local units_wanted=no
    while [ $# -gt 0 ]; do
        case $1 in
            --prefix=*) prefix=${1#*=} ;;
            --prefix)
                [ $# -gt 1 ] || die "--prefix needs a folder"
                prefix=$2
                shift
                ;;
            --systemd) units_wanted=yes ;;
            *) die "$verb has no option $1; ./install.sh lists them" ;;
        esac
        shift
    done
    [ -n "$prefix" ] || die "--prefix needs a folder, and got an empty text: is a variable not set?"
    umask 022
    set_places
    check_ground
}

# Decide where everything goes: /usr and /usr/local mean the whole machine, any other prefix a private copy.
set_places() {
    case $prefix in
        /*) ;;
        *) prefix=$(pwd)/$prefix ;;
    esac
    prefix=${prefix%/}
    case $prefix in
        *[!A-Za-z0-9_./+@-]*) die "--prefix $prefix: cron and systemd want letters, digits and _ . / + @ -" ;;
        /usr | /usr/local) root='' owner=midatagram run_mode=1775 ;;
        *) root=$prefix owner=$(id -un) run_mode=0755 ;;
    esac
    lib=$prefix/lib/midatagram launcher=$prefix/bin/midatagram
    etc=$root/etc/midatagram run=$root/run/midatagram units=$root/etc/systemd/system logs=$root/var/log/midatagram
    written=$lib/installed.txt # the files that system wrote, with their checksums
}

# As root, go no way that others can change: they could have root write files, and run programs, of their choice.
check_ground() {
    [ "$(id -u)" = 0 ] || return 0
    for place in "$lib/plugins" "${launcher%/*}" "$etc/plugins" "${run%/*}" "${logs%/*}" "$units"; do
        for at in "$place" "$(readlink -m "$place")"; do
            while [ -n "$at" ]; do
                # Out of a sticky folder, as /tmp, nobody can take a folder that is root's.
                [ -z "$(find -L "$at" -maxdepth 0 \( ! -user 0 -o -perm /022 ! -perm -1000 \) 2>/dev/null)" ] ||
                    die "others than root can write $at; mend: chown root $at; chmod go-w $at (or give another --prefix)"
                at=${at%/*}
            done
        done
    done
}

# Have the user that the server runs as: one of its own on the whole machine, for a private copy whoever makes it.
have_owner() {
    if [ -z "$root" ]; then
        [ "$(id -u)" = 0 ] || die "this installs for the whole machine: be root, or give --prefix DIR"
        id "$owner" >/dev/null 2>&1 ||
            useradd --system --user-group --home-dir /nonexistent --shell /usr/sbin/nologin "$owner" ||
            die "cannot make the user $owner: make it by hand, then call this again"
    fi
    group=$(id -gn "$owner")
    # /run is empty after a boot, so each line for cron and supervisor says this again. Clients may put their
    # reply sockets beside the server's: hence a folder that the group can write, and sticky, so that they cannot
    # take away what is the server's.
    make_run="install -d -m $run_mode -o $owner -g $group $run"
}

# Decide which Python runs the installed script: one that has the packages, else a virtual environment.
choose_interpreter() {
    [ -n "${PYTHON:-}" ] || pythons="/usr/bin/python3 $pythons"
    interpreter=$(find_python)
    # 22.10 is the oldest gevent that is tested; Debian's tells its version truly in __version__ alone.
    is_lacking='import sys, configobj, gevent
sys.exit([int(part) for part in gevent.__version__.split(".")[:2]] < [22, 10])'
    if "$interpreter" -I -c "$is_lacking" 2>/dev/null; then
        say "using $interpreter and the packages it has"
    else
        make_folders "$lib"
        provide_pinned "$lib/.venv"
        interpreter=$lib/.venv/bin/python
    fi
    [ -z "$root" ] || return 0
    case $(readlink -f "$interpreter") in
        /root/* | /home/*) die "$interpreter lives in a home, where the user $owner cannot run it: set PYTHON" ;;
    esac
}

# Make these folders.
make_folders() {
    trouble=$(install -d -m 0755 "$@" 2>&1) ||
        die "${trouble%%
*}; give a --prefix DIR where $(id -un) may make folders"
}

copy_files() {
    make_folders "$lib/plugins" "${launcher%/*}" "$etc/plugins" "${run%/*}"
    $make_run
    install -d -m 0750 -o "$owner" -g "$group" "$logs"
    : >"$written.new"
    rm -f "$lib/midatagram.conf.example" # 1.0.0 had it there, where `call` would look into it
    put "$lib/midatagram.py" 0755 <"$here/midatagram.py"
    put "$lib/LICENSE" <"$here/LICENSE"
    for plugin in "$here"/plugins/*.py "$here"/plugins/*.names; do
        put "$lib/plugins/${plugin##*/}" <"$plugin"
    done
    for canned in "$here"/plugins/*.conf; do
        put_unless_edited "$lib/plugins/${canned##*/}" <"$canned"
    done
    adapted_example | put "$etc/midatagram.conf.example"
    adapted_example | put_unless_edited "$etc/midatagram.conf"
    # Without -f the script looks beside itself, then in /etc/midatagram: by this link a private copy finds its own.
    [ -z "$root" ] || [ -e "$lib/midatagram.conf" ] || ln -s "$etc/midatagram.conf" "$lib"
    printf "#!/bin/sh\nexec '%s' '%s' \"\$@\"\n" "$interpreter" "$lib/midatagram.py" | put "$launcher" 0755
    say "wrote $lib, $launcher"
}

# Write standard input to the file $1.new with the mode $2, or 0644, and list it as written.
write_new() {
    cat >"$1.new"
    chmod "${2:-0644}" "$1.new"
    list_line "$1" "$1.new" >>"$written.new"
}

# Write standard input to the file $1 with the mode $2, or 0644.
put() {
    write_new "$@"
    mv "$1.new" "$1"
}

# The same, but what a person has edited stays, and the new file is put beside it.
put_unless_edited() {
    write_new "$1"
    if [ ! -e "$1" ] || is_as_written "$1"; then
        mv "$1.new" "$1"
        say "wrote $1"
    elif cmp -s "$1.new" "$1"; then
        rm "$1.new"
        say "kept $1"
    else
        say "kept $1, which has been edited; the new one is $1.new"
    fi
}

# Print the line of the list for the file $1 with the content of the file $2.
list_line() {
    sum=$(sha256sum <"$2")
    say "${sum%% *} $1"
}

# Whether the file $1 is as system wrote it last.
is_as_written() {
    grep -qxF "$(list_line "$1" "$1")" "$written" 2>/dev/null
}

# Remove the files that were written, are as they were, and are not written any more.
remove_old() {
    [ -e "$written" ] || return 0
    while read -r _ file; do
        if [ ! -e "$file" ] || cut -d' ' -f2- "$written.new" | grep -qxF "$file"; then
            continue
        fi
        rm -f "$file.new"
        if is_as_written "$file"; then
            rm "$file"
            say "removed $file"
        else
            say "kept $file, which has been edited"
        fi
    done <"$written"
}

# Print the example with the socket in the run-time folder and in the owner's hands.
adapted_example() {
    sed -e "s|\"/tmp/midatagram.sock\"|\"$run/midatagram.sock\"|" \
        -e "s|^# *\(modparam(\"mi_datagram\", \"unix_socket_user\", \)\"[^\"]*\"|\1\"$owner\"|" \
        -e "s|\"/etc/midatagram/plugins/\"|\"$etc/plugins/\"|" \
        -e "s|\"/var/log/midatagram/|\"$logs/|" "$example"
}

# Write the units. They are made anew each time: changes belong into `systemctl edit`.
write_units() {
    install -d -m 0755 "$units"
    service_unit | put "$units/midatagram.service"
    address=$(listen_address "$(socket_of "$etc/midatagram.conf")")
    socket_unit | put "$units/midatagram.socket"
    say "wrote $units/midatagram.service and .socket"
}

# Print the socket_name $1 as systemd writes it: a path, HOST:PORT or [HOST]:PORT.
listen_address() {
    port=${1##*:} host=${1#udp:}
    host=${host%:*}
    case $1 in
        udp:\[*) say "$host:$port" ;;
        udp:*:*:*) say "[$host]:$port" ;;
        udp:*) say "$host:$port" ;;
        *) say "$1" ;;
    esac
}

service_unit() {
    cat <<END
# Made by install.sh, which writes it anew: keep changes in "systemctl edit midatagram".
[Unit]
Description=Management Interface of OpenSIPS over datagrams
After=network.target
StartLimitIntervalSec=60
StartLimitBurst=10

[Service]
Type=notify
NotifyAccess=main
ExecStart=$launcher -f $etc/midatagram.conf
ExecReload=$launcher -c -f $etc/midatagram.conf
ExecReload=/bin/kill -HUP \$MAINPID
User=$owner
Group=$group
# The server replaces a dead child itself, and ends its children itself when it is told to stop.
KillMode=mixed
OOMPolicy=continue
TimeoutStopSec=10
WatchdogSec=30
Restart=on-failure
RestartSec=1
# 2 usage, 73 cannot create, 77 permission, 78 configuration: a person has to mend these.
RestartPreventExitStatus=2 73 77 78
LimitNOFILE=65536

# Kept over restarts: clients may have their reply sockets in it, and the socket unit has its socket there.
RuntimeDirectory=midatagram
RuntimeDirectoryMode=$run_mode
RuntimeDirectoryPreserve=yes
LogsDirectory=midatagram
LogsDirectoryMode=0750
# For a store_file: /var/lib/midatagram.
StateDirectory=midatagram
StateDirectoryMode=0700
UMask=0027

# A reply goes to the path that the client has bound. So the server must see the same /tmp and the same homes
# as its clients; that they are read-only is no hindrance, as sending to a socket writes no file. Abstract
# addresses belong to the network namespace, and clients' user ids mean nothing in a user namespace of its own.
PrivateTmp=no
PrivateNetwork=no
PrivateUsers=no
ProtectHome=read-only
ProtectSystem=strict
ReadWritePaths=-/tmp -$run -$logs

NoNewPrivileges=yes
# A client of another user must let the group $group write to its reply socket. Where that cannot be had, give
# the server CAP_DAC_OVERRIDE here and in AmbientCapabilities=.
CapabilityBoundingSet=
LockPersonality=yes
PrivateDevices=yes
ProtectClock=yes
ProtectControlGroups=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
SystemCallArchitectures=native
SystemCallErrorNumber=EPERM
SystemCallFilter=@system-service

[Install]
WantedBy=multi-user.target
END
}

socket_unit() {
    cat <<END
# Made by install.sh, which writes it anew: keep changes in "systemctl edit midatagram.socket".
# Optional. With it systemd holds the socket, and requests wait in its queue while the server starts anew.
[Unit]
Description=Socket of the Management Interface of OpenSIPS

[Socket]
ListenDatagram=$address
SocketUser=$owner
SocketGroup=$group
SocketMode=0660
DirectoryMode=0755
# Who has sent a request is recorded as it is sent, also before the server runs.
PassCredentials=yes
RemoveOnStop=yes

[Install]
WantedBy=sockets.target
END
}

print_lines() {
    serve="$launcher -f $etc/midatagram.conf" who=$owner
    [ -n "$root" ] || serve="$serve -u $owner -g $group" who=root
    cat <<END

# cron: put these lines into the crontab of $who (crontab -e)
@reboot $make_run && $serve -D --if-not-running -P $run.pid
* * * * * $make_run && $serve -D --if-not-running -P $run.pid

# supervisor: /etc/supervisor/conf.d/midatagram.conf, then supervisorctl update
[program:midatagram]
command=/bin/sh -c '$make_run && exec $serve'
autorestart=unexpected
startsecs=0
exitcodes=0,2,73,77,78
stopwaitsecs=10
redirect_stderr=true

# logrotate: /etc/logrotate.d/midatagram, for log_file and trace_file there
$logs/*.log $logs/*.jsonl {
    su $owner $group
    weekly
    rotate 8
    compress
    delaycompress
    missingok
    notifempty
    nocreate
    sharedscripts
    postrotate
        kill -USR1 \$($launcher call -f $etc/midatagram.conf ps | sed -n 's/^Process::  ID=0 PID=\([0-9]*\).*/\1/p')
    endscript
}

# systemd: ./install.sh system --systemd writes $units/midatagram.service and .socket
${root:+systemctl link $units/midatagram.service $units/midatagram.socket
}systemctl daemon-reload
systemctl enable --now midatagram.service
# or, so that requests wait while the server starts anew
systemctl enable --now midatagram.socket
END
}

### uninstall #################################################################

do_uninstall() {
    read_options "$@"
    [ -e "$written" ] || die "$prefix has nothing that system wrote: there is no $written"
    ! "$launcher" --status -f "$etc/midatagram.conf" >/dev/null 2>&1 ||
        die "the server runs; take its lines out of crontab and supervisor and stop it first" \
            "(systemd: systemctl disable --now midatagram.socket midatagram.service)"
    : >"$written.new"
    remove_old
    rm -rf "$lib/.venv" "$written" "$written.new" "$run.pid" "$run/midatagram.sock"
    [ ! -L "$lib/midatagram.conf" ] || rm "$lib/midatagram.conf"
    rmdir "$lib/plugins" "$lib" "$etc/plugins" "$etc" "$logs" "$run" 2>/dev/null || :
    for folder in "$lib" "$etc" "$logs"; do
        [ ! -d "$folder" ] || say "kept $folder, which is not empty"
    done
    [ -n "$root" ] || say "kept the user $owner; userdel $owner removes it"
    [ -z "$root" ] || (cd "$root" && rmdir -p lib bin etc/systemd/system etc var/log run 2>/dev/null; rmdir "$root" 2>/dev/null) || :
}

case ${1:-} in
    run | test | system | uninstall)
        verb=$1
        shift
        "do_$verb" "$@"
        ;;
    '' | -h | --help) usage ;;
    *)
        usage >&2
        exit 2
        ;;
esac
