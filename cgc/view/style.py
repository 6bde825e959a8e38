"""The look of the report: quiet, light or dark as the reader's system is, for screen, phone and paper."""

STYLE = """\
:root {
  --page: #f6f6f4; --card: #ffffff; --ink: #1d1f23; --quiet: #6a6e76; --line: #e3e3df;
  --accent: #2f6f6a; --warn-page: #fdf5e3; --warn-line: #e2bd62;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #141518; --card: #1d1f23; --ink: #e9e9e6; --quiet: #9a9ea6; --line: #2f3238;
    --accent: #6fb8b0; --warn-page: #2b2415; --warn-line: #8d712c;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif;
}
main { max-width: 1240px; margin: 0 auto; padding: 48px 24px 96px; }
h1 { font-size: 34px; line-height: 1.15; letter-spacing: -0.02em; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 21px; letter-spacing: -0.01em; margin: 0 0 16px; }
h3 { font-size: 15px; font-weight: 600; margin: 0 0 12px; }
header p { color: var(--quiet); margin: 8px 0 0; overflow-wrap: anywhere; }
section { margin-top: 56px; }

.facts {
  display: grid; grid-template-columns: repeat(var(--columns), 1fr); gap: 12px; margin: 32px 0 0;
}
.facts div {
  background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 14px 18px;
}
.facts dt { color: var(--quiet); font-size: 13px; }
.facts dd {
  margin: 2px 0 0; font-size: 24px; font-weight: 600; letter-spacing: -0.01em;
  font-variant-numeric: tabular-nums; overflow-wrap: anywhere;
}

aside {
  margin-top: 24px; padding: 16px 20px; border-radius: 12px; background: var(--card); border: 1px solid var(--line);
}
aside.warnings { background: var(--warn-page); border-color: var(--warn-line); }
aside h2 { font-size: 15px; margin: 0 0 4px; }
aside ul { margin: 0; padding-left: 20px; overflow-wrap: anywhere; }

figure { margin: 0; }
figure img, figure > div {
  display: block; width: 100%; height: auto; border-radius: 8px; background: var(--line);
}
figure > div { display: grid; place-items: center; aspect-ratio: 4 / 3; color: var(--quiet); }
figcaption { color: var(--quiet); font-size: 13px; margin-top: 6px; }

.view { background: var(--card); border: 1px solid var(--line); border-radius: 14px; padding: 18px; }
.view + .view { margin-top: 16px; }
.view h3 { display: flex; align-items: baseline; gap: 10px; }
.view .name { overflow-wrap: anywhere; }
.view .number { margin-left: auto; color: var(--quiet); font-weight: 500; white-space: nowrap; }
.triple { display: grid; grid-template-columns: repeat(3, 1fr); gap: 12px; }
.four { grid-template-columns: repeat(4, 1fr); }
.split {
  font-size: 12px; font-weight: 600; padding: 1px 9px; border-radius: 99px;
  color: var(--quiet); border: 1px solid currentColor; white-space: nowrap;
}
.split.test { color: var(--accent); }

.note { color: var(--quiet); margin: -10px 0 16px; font-size: 14px; }
.sheet { display: grid; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); gap: 16px 12px; }
.sheet img { aspect-ratio: 1; object-fit: contain; background: var(--card); border: 1px solid var(--line); }
.sheet figcaption { display: flex; align-items: center; color: var(--ink); font-weight: 600; }
.quiet { color: var(--quiet); font-weight: 400; }
.sheet .quiet { margin-left: auto; }
.swatch {
  display: inline-block; width: 12px; height: 12px; border-radius: 4px; margin-right: 8px;
  vertical-align: -1px; flex: none;
}

.scroll {
  overflow: auto; max-height: 662px;
  background: var(--card); border: 1px solid var(--line); border-radius: 12px;
}
table { border-collapse: collapse; width: 100%; font-size: 14px; font-variant-numeric: tabular-nums; }
th {
  position: sticky; top: 0; background: var(--card); color: var(--quiet); font-weight: 500; font-size: 13px;
  box-shadow: inset 0 -1px var(--line);
}
th, td { padding: 9px 18px; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
tbody tr + tr td { border-top: 1px solid var(--line); }
.cost td:last-child { width: 60%; text-align: left; }
.bar {
  display: block; height: 8px; min-width: 2px; border-radius: 4px; background: var(--accent); opacity: 0.75;
}

details { background: var(--card); border: 1px solid var(--line); border-radius: 12px; }
details .scroll { border: 0; border-top: 1px solid var(--line); border-radius: 0 0 12px 12px; }
summary { padding: 14px 18px; font-weight: 600; cursor: pointer; }
details td:last-child { white-space: normal; overflow-wrap: anywhere; }
code { font: 13px ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }

@media (max-width: 720px) {
  main { padding: 28px 14px 64px; }
  h1 { font-size: 27px; }
  section { margin-top: 40px; }
  .facts { grid-template-columns: repeat(2, 1fr); gap: 8px; }
  .facts div { padding: 10px 14px; }
  .facts dd { font-size: 20px; }
  .view { padding: 12px; }
  .triple, .four { grid-template-columns: 1fr; }
  .sheet { grid-template-columns: repeat(auto-fill, minmax(96px, 1fr)); }
  th, td { padding: 8px 12px; }
}
@media print { .scroll { max-height: none; } .view { break-inside: avoid; } }
"""
