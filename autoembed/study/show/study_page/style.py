"""How a study's page looks: light and dark, narrow and wide.

The colours of arms follow Okabe and Ito's, darker on white and lighter on black, so that each has a contrast of 3 or
more; arms differ in marker and dashes too.
"""

STYLE = """
:root { color-scheme: light dark; --bg: #fff; --ink: #1d2329; --mute: #59636e; --line: #d5dae0; --soft: #f3f5f7;
  --link: #0058a8; --heat: #0072b2; --bad: #b3261e; --warn: #8a5300; --good: #00674a;
  --s0: #1d2329; --s1: #0072b2; --s2: #c24e00; --s3: #007a5a; --s4: #a34a80; --s5: #8a6d00; --s6: #5b5fc7 }
@media (prefers-color-scheme: dark) { :root { --bg: #14181c; --ink: #e7ebef; --mute: #a2adb8; --line: #3a434d;
  --soft: #1e242a; --link: #7cc0ff; --heat: #4aa8e0; --bad: #ff8a80; --warn: #f0b35e; --good: #5fd3a8;
  --s0: #f2f5f7; --s1: #5bb8f0; --s2: #f58b4c; --s3: #4fd1a5; --s4: #e79ac6; --s5: #e0c341; --s6: #a6a9ff } }
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 80rem; padding: 1.5rem 1rem 4rem; background: var(--bg); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; overflow-wrap: break-word }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .5rem } h2 { font-size: 1.25rem; margin: 2.2rem 0 .6rem }
h3 { font-size: 1rem; margin: 1.2rem 0 .3rem } p { margin: .4rem 0 .7rem; max-width: 48rem }
a { color: var(--link) } :focus-visible { outline: 3px solid var(--link); outline-offset: 2px }
.skip { position: absolute; left: -999rem } .skip:focus { position: static }
nav ul { display: flex; flex-wrap: wrap; gap: .3rem 1rem; list-style: none; padding: .6rem 0; margin: 0;
  border-bottom: 1px solid var(--line) }
.verdict { font-size: 1.12rem; border-left: 4px solid var(--heat); background: var(--soft); padding: .7rem 1rem;
  max-width: none } .verdict p { max-width: 60rem; margin: .2rem 0 }
.scroll { overflow-x: auto; max-width: 100% }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .92rem }
th, td { padding: .25rem .7rem; text-align: right; white-space: nowrap; font-weight: 400 }
.text { text-align: left } .say { display: inline-block; white-space: normal;
  min-width: 12rem; max-width: 40rem } thead th { vertical-align: bottom; white-space: normal; max-width: 9rem;
  font-weight: 600; border-bottom: 1px solid var(--mute) } thead th.text { font-weight: 600 }
tbody tr + tr > * { border-top: 1px solid var(--line) } .best > * { font-weight: 700 }
.heat td { text-align: center; padding: .2rem .5rem; border: 1px solid var(--bg);
  background: color-mix(in srgb, var(--heat) calc(var(--v) * 55%), var(--soft)) }
.heat td.none { background: none; color: var(--mute) }
code, pre { font: .9em/1.45 ui-monospace, Menlo, Consolas, monospace; background: var(--soft); border-radius: 3px }
code { padding: .05em .3em; overflow-wrap: anywhere } pre { padding: .7rem 1rem; overflow-x: auto; margin: .4rem 0 }
table code { background: none; padding: 0; white-space: nowrap } small, .mute { color: var(--mute) }
.error { color: var(--bad); font-weight: 600 } .warning { color: var(--warn); font-weight: 600 }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 27rem), 1fr)); gap: 1rem 2rem }
figure { margin: .4rem 0; max-width: 40rem } figcaption { color: var(--mute); font-size: .9rem }
svg { display: block; max-width: 100%; height: auto } svg text { fill: var(--ink); font-size: 12px }
td svg { max-width: none; display: inline-block; vertical-align: middle }
svg .axis { stroke: var(--mute) } svg .grid { stroke: var(--line) } svg .mark { fill-opacity: .75; stroke-width: 1.5 }
svg .open { fill: var(--bg) } svg .line { fill: none; stroke-width: 2 } svg .front { stroke: var(--mute); fill: none }
svg .mark:hover { stroke-width: 5 }
.legend { display: flex; flex-wrap: wrap; gap: .1rem 1rem; list-style: none; margin: .2rem 0; padding: 0;
  font-size: .9rem } .legend svg { display: inline-block; vertical-align: -.15em }
.bar { display: inline-block; height: .7em; background: var(--heat); vertical-align: baseline; min-width: 1px }
.bar.dim { background: var(--mute) } dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1rem }
dt { color: var(--mute) } dd { margin: 0; overflow-wrap: anywhere } details { margin: .6rem 0 }
summary { cursor: pointer; color: var(--link) }
@media (max-width: 40rem) { body { padding: 1rem .75rem 3rem } th, td { padding: .25rem .45rem }
  table code { display: inline-block; max-width: 9rem; overflow: hidden; text-overflow: ellipsis;
    vertical-align: bottom }
  dl { grid-template-columns: 1fr } dd { margin-bottom: .4rem } }
@media print { nav, .skip { display: none } .scroll { overflow: visible } }
""" + "".join(
    f"svg .s{n} {{ stroke: var(--s{n}); fill: var(--s{n}) }} svg .line.s{n} {{ fill: none }} "
    f"svg .open.s{n} {{ fill: var(--bg) }}\n"
    for n in range(7)
)
