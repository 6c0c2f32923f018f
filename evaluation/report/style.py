"""The look of the pages: light or dark as the reader's machine is, for narrow and wide windows."""

STYLE = """
:root {
  color-scheme: light dark;
  --paper: #ffffff; --panel: #f5f6f8; --ink: #1c2026; --muted: #626a75; --line: #dfe2e7;
  --right: #0072b2; --wrong: #d55e00;
  --s1: #0072b2; --s2: #d55e00; --s3: #008a63; --s4: #b85a92; --s5: #a87400; --s6: #3a96cf;
  --s7: #4a4f57;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #15181d; --panel: #1e2229; --ink: #e6e8eb; --muted: #9aa3af; --line: #343a44;
    --right: #58b0ea; --wrong: #f58f45;
    --s1: #58b0ea; --s2: #f58f45; --s3: #35c79f; --s4: #e59ac6; --s5: #eac04f; --s6: #9cd3f5;
    --s7: #c4c9d0;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 1.5rem clamp(0.75rem, 3vw, 2.5rem) 4rem; max-width: 90rem;
  background: var(--paper); color: var(--ink); overflow-wrap: anywhere;
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "Noto Sans CJK SC",
    "PingFang SC", "Microsoft YaHei", sans-serif;
}
h1 { margin: 0; font-size: 1.6rem; line-height: 1.25; }
h2 {
  margin: 2.75rem 0 0.75rem; padding-top: 0.75rem; border-top: 1px solid var(--line);
  font-size: 1.15rem;
}
h3 { margin: 1.5rem 0 0.5rem; font-size: 1rem; }
p, figure, ul { margin: 0; }
ul { padding: 0; list-style: none; }
code { font: 0.9em ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; }
a { color: var(--right); }
nav { display: flex; flex-wrap: wrap; gap: 0.25rem 1rem; margin-top: 0.75rem; }
.note { color: var(--muted); max-width: 50rem; }
h2 + .note, h3 + .note { margin-bottom: 0.75rem; }

.facts {
  display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 9.5rem), 1fr));
  gap: 0.6rem; margin: 1.25rem 0 0;
}
.facts div { padding: 0.6rem 0.8rem; border-radius: 8px; background: var(--panel); }
.facts dt { color: var(--muted); font-size: 0.8rem; }
.facts dd { margin: 0; font-size: 1.25rem; font-variant-numeric: tabular-nums; }
.facts small { display: block; color: var(--muted); font-size: 0.8rem; }

.charts {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr));
  gap: 1.25rem 1.5rem;
}
.smalls {
  display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 9.5rem), 1fr));
  gap: 0.75rem 1rem;
}
figcaption { font-size: 0.9rem; }
.chart figcaption, .small figcaption {
  display: flex; flex-wrap: wrap; justify-content: space-between; gap: 0 1rem;
}
.small figcaption { flex-wrap: nowrap; font-size: 0.8rem; line-height: 1.35; }
.small b { flex: none; font-weight: 500; font-variant-numeric: tabular-nums; }
.small span, .legend li {
  max-width: 16rem; overflow: hidden; text-overflow: ellipsis; white-space: nowrap;
}
svg { display: block; width: 100%; height: auto; font-size: 12px; }
svg.matrix { width: auto; max-width: none; }
svg text { fill: var(--muted); }
svg .end { text-anchor: end; }
svg .middle { text-anchor: middle; }
svg .cell { fill: var(--ink); text-anchor: middle; }
svg .on { fill: var(--paper); }
.grid { stroke: var(--line); fill: none; }
polyline { fill: none; stroke-width: 1.8; stroke-linejoin: round; }
polyline.faint { stroke-width: 1; stroke-opacity: 0.35; }
.dots { fill: none; stroke-width: 6; stroke-linecap: round; }
.small .dots { stroke-width: 4; }
.tip { fill: transparent; }
.tip:hover { fill: var(--ink); fill-opacity: 0.07; }
.field { fill: var(--panel); }
.right { fill: var(--right); }
.wrong { fill: var(--wrong); }
.matrix rect:hover { stroke: var(--ink); }
.s1 { stroke: var(--s1); } .s2 { stroke: var(--s2); } .s3 { stroke: var(--s3); }
.s4 { stroke: var(--s4); } .s5 { stroke: var(--s5); } .s6 { stroke: var(--s6); }
.s7 { stroke: var(--s7); }
li.s1 { --c: var(--s1); } li.s2 { --c: var(--s2); } li.s3 { --c: var(--s3); }
li.s4 { --c: var(--s4); } li.s5 { --c: var(--s5); } li.s6 { --c: var(--s6); }
li.s7 { --c: var(--s7); }
.key, .legend { display: flex; flex-wrap: wrap; gap: 0.1rem 0.9rem; font-size: 0.8rem; }
.key li::before {
  content: ""; display: inline-block; width: 1.1em; margin-right: 0.4em; vertical-align: 0.25em;
  border-top: 3px solid var(--c);
}
.key .faint::before { opacity: 0.45; border-top-width: 1px; }

.box { overflow-x: auto; max-width: 100%; }
table { border-collapse: collapse; font-size: 0.875rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.25rem 0.7rem; border-bottom: 1px solid var(--line); text-align: right; }
th { color: var(--muted); font-weight: 500; vertical-align: bottom; }
th:first-child, td:first-child, .words td, .words th { padding-left: 0; text-align: left; }
tbody th { color: inherit; font-weight: inherit; }
tfoot td { color: var(--muted); }
.words td, .words th { padding-right: 1.5rem; vertical-align: top; }
.words th { overflow-wrap: break-word; }
.pairs td:nth-child(2), .pairs th:nth-child(2) { text-align: left; }
.classes td, .classes th { white-space: nowrap; overflow-wrap: normal; }
.classes th:first-child {
  min-width: 8rem; max-width: 16rem; overflow: hidden; text-overflow: ellipsis;
}
.bar { position: relative; min-width: 7rem; }
.bar::before {
  content: ""; position: absolute; inset: 0.25rem auto 0.25rem 0; width: var(--w);
  border-radius: 2px; background: var(--right); opacity: 0.22;
}
.swatch {
  display: inline-block; width: 0.9em; height: 0.9em; margin-right: 0.45em; vertical-align: -0.08em;
  border: 1px solid var(--line); border-radius: 2px;
}
.none {
  background: repeating-linear-gradient(135deg, #fff 0 2px, #777 2px 5px);
}
.picture { margin: 0 0 1.75rem; }
.views {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 10.5rem), 1fr));
  gap: 0.4rem; margin: 0.35rem 0;
}
.chart { max-width: 36rem; }
.views figcaption { color: var(--muted); font-size: 0.8rem; }
.views img { display: block; width: 100%; border-radius: 4px; }
@media (max-width: 520px) { .views { grid-template-columns: 1fr 1fr; } }
"""
