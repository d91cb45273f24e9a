"""db_text -- tables in text files, as OpenSIPS' module has them: a file is read once, and again when dbt_reload asks for it.

Without this module the commands of others that reload a table read its file each time. What was read is in the store, a key for
each file.
"""
from __future__ import annotations

import os

import midatagram as mi

opensips = mi.shared("opensips_base")

PARAMS = [
    mi.Param("db_mode", 0, mi.integer(0), "0: files are read once, and again by dbt_reload; 1: each time"),
    *opensips.without_effect("buffer_size"),
]


def load(ctx):
    """Forget what was read for an earlier configuration."""
    for path, _ in ctx.store.items(opensips.FILES):
        ctx.store.remove(opensips.FILES, path)


@opensips.command(timed=False)
def dbt_reload(ctx, db_name=None, table_name=None):
    """Read the files of all tables again, of those in a folder, or of one."""
    wanted = [opensips.text(ctx, name, value) for name, value in (("db_name", db_name), ("table_name", table_name))
              if value is not None]
    if len(wanted) < len(ctx.request.values) or "" in wanted:
        raise mi.Error(400, "Bad parameter")
    paths = [path for path, _ in ctx.store.items(opensips.FILES) if fits(path, *wanted)]
    if wanted and not paths:
        raise mi.Error(400, "Bad parameter")
    troubles = 0
    for path in paths:
        try:
            with opensips.reloading(ctx, mi.Error(500, "Server Internal Error")):
                opensips.read_file_anew(ctx, path)
        except mi.Error:  # the others are read
            troubles += 1
    if troubles:
        raise mi.Error(500, "Server Internal Error")
    return mi.Reply()


def fits(path: str, folder: str = "", table: str = "") -> bool:
    """Whether a file is one of those that dbt_reload names: the case of the folder alone does not matter."""
    return folder.lower() in ("", os.path.dirname(path).lower()) and table in ("", os.path.basename(path))


@opensips.command
def dbt_dump(ctx):
    """Write tables that were changed to their files: nothing here changes one."""
    return mi.Reply()
