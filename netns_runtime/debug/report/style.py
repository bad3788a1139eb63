"""The page's one style sheet: system fonts, two schemes of colour, a phone's width, and paper.

Colours of text on its ground have a contrast of 4.5:1 or more in both schemes (a test computes it),
and whatever a colour says, a sign or a word says too.
"""

from __future__ import annotations

from typing import Final

LIGHT: Final = {
    "ground": "#fafaf8",
    "card": "#ffffff",
    "ink": "#1d1f22",
    "soft": "#5b6068",
    "rule": "#e4e3de",
    "passed": "#2a66a3",
    "open": "#2a66a3",
    "noted": "#6b4fa0",
    "failed": "#8f5200",
    "refused": "#b3261e",
    "closed": "#3f6b4a",
    "tint": "#f1f0ec",
}
DARK: Final = {
    "ground": "#15171a",
    "card": "#1c1f23",
    "ink": "#e7e6e2",
    "soft": "#a3a8b0",
    "rule": "#30343a",
    "passed": "#79b0ea",
    "open": "#79b0ea",
    "noted": "#bda4ee",
    "failed": "#e5ab4f",
    "refused": "#ff8a7d",
    "closed": "#86c296",
    "tint": "#24282d",
}


def _variables(colours: dict[str, str]) -> str:
    return "".join(f"--{name}:{value};" for name, value in colours.items())


_OUTCOMES: Final = "".join(
    f".{name}{{color:var(--{name})}}"
    for name in ("passed", "open", "noted", "failed", "refused", "closed")
)

_RULES: Final = """
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%;scroll-behavior:smooth}
body{margin:0;background:var(--ground);color:var(--ink);font:15px/1.5 system-ui,-apple-system,
  "Segoe UI",Roboto,"Noto Sans",sans-serif;font-variant-numeric:tabular-nums}
main,footer{max-width:68rem;margin:0 auto;padding:0 1.5rem}
main{padding-top:2.5rem}
footer{padding-top:1rem;padding-bottom:3rem;color:var(--soft);font-size:13px}
h1{font-size:2rem;line-height:1.2;font-weight:650;letter-spacing:-.01em;margin:0;
  overflow-wrap:anywhere}
h2{font-size:1.2rem;font-weight:650;margin:3rem 0 .5rem}
h3{font-size:1rem;font-weight:600;margin:0;overflow-wrap:anywhere;min-width:0}
p{margin:.35rem 0}
code{font:0.88em/1.45 ui-monospace,SFMono-Regular,Menlo,Consolas,"Liberation Mono",monospace;
  overflow-wrap:anywhere}
a{color:inherit}
.story+.story{margin-top:5rem;padding-top:2.5rem;border-top:2px solid var(--rule)}
main>header+.story{margin-top:3rem}
main>header ul{padding-left:1.1rem}
.kicker,.hint,.none{color:var(--soft)}
.kicker{margin:0;font-size:13px}
.hint{max-width:46rem}
.lead{font-size:1.15rem;margin:.4rem 0 1.2rem;max-width:46rem}
.shapes{position:absolute}
.pairs{margin:0;display:grid;align-content:start;gap:.2rem 2rem}
.pairs div{display:grid;grid-template-columns:6.5rem minmax(0,1fr);gap:.75rem}
.pairs dt{color:var(--soft)}
.pairs dd{margin:0;overflow-wrap:anywhere}
header>.pairs{grid-template-columns:repeat(auto-fill,minmax(20rem,1fr))}
.tiles{list-style:none;margin:1.6rem 0 0;padding:0;display:grid;
  grid-template-columns:repeat(auto-fit,minmax(9rem,1fr));border:1px solid var(--rule);
  border-radius:10px;background:var(--card);overflow:hidden}
.tile{padding:.9rem 1.1rem;display:flex;flex-direction:column;color:var(--ink);
  box-shadow:1px 0 0 var(--rule),0 1px 0 var(--rule)}
.tile strong{font-size:1.6rem;line-height:1.25;font-weight:600;white-space:nowrap}
.tile.refused strong{color:var(--refused)}
.tile.failed strong{color:var(--failed)}
.tile small{color:var(--soft);font-size:12.5px;line-height:1.4}
.evidence{margin-top:1.2rem;padding:.7rem 1rem;border-left:3px solid var(--failed);
  background:var(--tint)}
.notes{margin:.4rem 0;padding-left:1.1rem;color:var(--soft)}
dd .notes{margin:0;padding-left:1rem;color:inherit}
.timeline>input{position:absolute;opacity:0;pointer-events:none}
.bar{display:flex;flex-wrap:wrap;gap:.5rem 1.5rem;justify-content:space-between;
  margin:.8rem 0 .5rem}
.legend{list-style:none;display:flex;flex-wrap:wrap;gap:.3rem 1.2rem;margin:0;padding:0;
  color:var(--soft);font-size:13.5px}
.legend li,.badge,.sum span{display:inline-flex;align-items:center;gap:.35rem}
.zooms{display:flex;align-items:center;gap:.25rem;color:var(--soft);font-size:13.5px}
.zooms label{padding:.05rem .5rem;border:1px solid var(--rule);border-radius:6px;cursor:pointer}
.zooms span{margin-right:.35rem}
.scroll{overflow-x:auto;border:1px solid var(--rule);border-radius:10px;background:var(--card)}
.lanes{min-width:100%;width:100%}
.z2:checked~.scroll .lanes{width:200%}
.z4:checked~.scroll .lanes{width:400%}
.z8:checked~.scroll .lanes{width:800%}
.z1:checked~.bar label.z1,.z2:checked~.bar label.z2,.z4:checked~.bar label.z4,
  .z8:checked~.bar label.z8{background:var(--ink);color:var(--ground);border-color:var(--ink)}
input:focus-visible~.bar .zooms label{outline:2px solid var(--passed);outline-offset:1px}
.lane{display:grid;grid-template-columns:15rem minmax(0,1fr) 9rem;align-items:center;
  border-top:1px solid var(--rule)}
.lane.axis{border-top:0;color:var(--soft)}
.lane .name,.lane .sum{position:sticky;z-index:1;background:var(--card);padding:.25rem .8rem;
  align-self:stretch;display:flex;align-items:center}
.lane .name{left:0;overflow-wrap:anywhere;font-size:13.5px;line-height:1.3}
.lane .sum{right:0;font-size:13.5px;gap:.7rem;justify-content:flex-end}
.plot use{fill:currentColor}
.plot{display:block;overflow:visible}
.plot text{font-size:11.5px;fill:var(--soft);text-anchor:middle}
.plot text.end{text-anchor:end}
.plot text.start{text-anchor:start}
.grid{stroke:var(--rule);stroke-width:1}
.sign{flex:none;fill:currentColor;overflow:visible}
.stroke{fill:none;stroke:currentColor;stroke-width:2;stroke-linecap:round}
.ring{fill:var(--card);stroke:currentColor;stroke-width:2}
.flow{fill:currentColor}
.flow.passed,.flow.open{opacity:.72}
.flow.socket{stroke:currentColor;stroke-width:1.5;fill-opacity:.28;opacity:1}
.point{fill:currentColor}
.around{fill:currentColor;fill-opacity:.16}
.around.s0{fill-opacity:0}
.plot a:focus-visible .around,.plot a:hover .around{fill-opacity:.35}
.plot a:hover rect,.plot a:focus-visible rect{opacity:1;stroke:var(--ink);stroke-width:1}
.ribbons{display:grid;grid-template-columns:minmax(6rem,14rem) minmax(0,1fr) minmax(9rem,22rem);
  gap:.7rem;margin:1rem 0;align-items:center}
.ribbons ul{list-style:none;margin:0;padding:0;align-self:stretch;display:flex;
  flex-direction:column;justify-content:space-around}
.ribbons li{height:30px;line-height:30px;white-space:nowrap;overflow:hidden;text-overflow:ellipsis}
.ribbons .who{text-align:right;font-weight:600}
.ribbons svg{display:block}
.ribbon{fill:none;stroke:currentColor;opacity:.55;vector-effect:non-scaling-stroke}
.ribbon:hover{opacity:1}
.ribbon.refused{stroke-dasharray:6 3}
.wide{overflow-x:auto;margin:.8rem 0}
table{border-collapse:collapse;width:100%;font-size:14px}
caption{text-align:left;color:var(--soft);font-size:13px;padding-bottom:.3rem}
th{font-weight:500;color:var(--soft);text-align:left;font-size:13px}
th,td{padding:.32rem .9rem .32rem 0;vertical-align:baseline;border-bottom:1px solid var(--rule)}
td:last-child,th:last-child{padding-right:0}
td{min-width:3rem}
td code{overflow-wrap:normal}
.n{text-align:right;white-space:nowrap}
.cards{display:grid;gap:.9rem;margin-top:.9rem}
.card{background:var(--card);border:1px solid var(--rule);border-left:4px solid currentColor;
  border-radius:8px;padding:.9rem 1.1rem 1rem}
.card>*{color:var(--ink)}
.card{display:grid;grid-template-columns:minmax(0,3fr) minmax(0,2fr);gap:0 1.6rem;
  align-content:start}
.card .head,.card .what{grid-column:1/3}
.card .head{display:flex;align-items:baseline;gap:.9rem;flex-wrap:wrap}
.card .what{margin:.1rem 0 .6rem;color:var(--soft);overflow-wrap:anywhere}
.badge{font-size:13px;white-space:nowrap}
.times{margin-left:auto;font-weight:600;white-space:nowrap}
.path{font-weight:400;color:var(--soft)}
.remedy{padding-left:1.4rem;border-left:1px solid var(--rule)}
.remedy p{margin:.15rem 0;overflow-wrap:anywhere}
.remedy .label{color:var(--soft);font-size:13px}
.said::first-letter{text-transform:uppercase}
.change code{display:inline-block;background:var(--tint);border-radius:5px;padding:.15rem .5rem}
.or{color:var(--soft)}
details{margin:.8rem 0}
summary{cursor:pointer;padding:.25rem 0;font-weight:500}
:target{outline:2px solid var(--passed);outline-offset:3px;scroll-margin:2rem}
tr:target td{background:var(--tint)}
@media (max-width:44rem){
main,footer{padding:0 1rem}
main{padding-top:1.4rem}
h1{font-size:1.6rem}
h2{margin-top:2.4rem}
header>.pairs{grid-template-columns:minmax(0,1fr)}
.tiles{grid-template-columns:1fr 1fr}
.lane{grid-template-columns:minmax(0,1fr) auto;padding:.2rem 0 .3rem}
.lane .name{grid-row:1;justify-self:start;max-width:70vw}
.lane .sum{grid-row:1;grid-column:2}
.lane .plot{grid-row:2;grid-column:1/3;padding:0 .8rem}
.lane.axis .sum,.lane.axis .name{display:none}
.lane.axis .plot{grid-row:1}
.ribbons{grid-template-columns:minmax(0,5.5rem) minmax(3rem,1fr) minmax(0,11rem);gap:.4rem;
  font-size:13px}
.pairs div{grid-template-columns:5.6rem minmax(0,1fr);gap:.6rem}
.card{display:block}
.remedy{margin-top:.7rem;padding:.6rem 0 0;border-left:0;border-top:1px solid var(--rule)}
}
@media print{
body{background:none;font-size:11pt}
main,footer{max-width:none;padding:0}
.zooms{display:none}
.scroll,.wide{overflow:visible}
.lanes{width:100%!important}
.card,.tile,.lane,tr{break-inside:avoid}
h2{break-after:avoid}
}
"""

STYLE: Final = (
    f":root{{color-scheme:light dark;{_variables(LIGHT)}}}"
    f"@media (prefers-color-scheme:dark){{:root{{{_variables(DARK)}}}}}"
    f"{_OUTCOMES}{_RULES}"
)
