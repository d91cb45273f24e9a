"""hello -- greets, and counts the greetings."""

import midatagram as mi

PARAMS = [mi.Param("greeting", "Hello", mi.string, "word put before the name")]
STATS = [mi.Stat("greetings", "greetings sent since start")]


@mi.command(times=mi.integer(1, 9))
def hello(ctx, name, times=1):
    """Greet NAME, TIMES times."""
    ctx.count("greetings", times)
    return mi.Reply(200, "OK", [mi.Node("greeting", f"{ctx.param('greeting')} {name}")] * times)
