"""What every HTML page that is one file has in common: how it looks, and that it loads nothing."""

from __future__ import annotations

#: For every page of ours that is a file: the browser is told to load nothing at all, so that a page passed on cannot call home.
PAGE_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"

#: What such pages look like, light and dark.
PAGE_STYLE = """
:root { color-scheme: light dark; --back: #f6f8fa; --card: #fff; --text: #1f2328; --quiet: #57606a; --line: #d0d7de; --link: #0757ba;
  --bar: #4a7fc1; --now: #b8470f; --good: #116329; --good-back: #dafbe1; --wait: #7a4a00; --wait-back: #fff4cf; }
@media (prefers-color-scheme: dark) { :root { --back: #0d1117; --card: #161b22; --text: #e6edf3; --quiet: #9ea7b3; --line: #30363d;
  --link: #79b8ff; --bar: #5b93d6; --now: #f0883e; --good: #7ee2a0; --good-back: #12331f; --wait: #f2cc60; --wait-back: #3a2d05; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--text); font: 15px/1.5 system-ui, sans-serif; }
main, header { max-width: 1180px; margin: 0 auto; padding: 0 20px; }
header { padding-top: 28px; }
h1 { margin: 0; font-size: 28px; } h1 small { color: var(--quiet); font-weight: normal; }
h2 { margin: 36px 0 12px; padding-top: 8px; border-top: 1px solid var(--line); font-size: 20px; }
h3 { margin: 0; font-size: 15px; overflow-wrap: anywhere; } h3 small { color: var(--quiet); font-weight: normal; }
p { margin: 4px 0; max-width: 85ch; } code { font: 13px ui-monospace, monospace; overflow-wrap: anywhere; }
a { color: var(--link); } nav { margin: 12px 0; } nav a { display: inline-block; margin-right: 16px; }
.quiet { color: var(--quiet); font-size: 13px; }
.chip { display: inline-block; margin: 2px 6px 2px 0; padding: 1px 9px; border-radius: 10px; font-size: 13px; }
.good { background: var(--good-back); color: var(--good); } .wait { background: var(--wait-back); color: var(--wait); }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(330px, 100%), 1fr)); gap: 14px; margin: 12px 0; }
.card { min-width: 0; padding: 12px 14px; border: 1px solid var(--line); border-radius: 8px; background: var(--card); }
.card .figure { margin: 8px 0; } .stack .card { margin: 10px 0; }
.wide { overflow-x: auto; margin: 6px 0 12px; } .wide table { min-width: 480px; }
table.list { border-collapse: collapse; width: 100%; background: var(--card); border: 1px solid var(--line); font-size: 14px; }
table.list th, table.list td { padding: 5px 10px; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
table.list th { color: var(--quiet); font-weight: 600; }
.n { text-align: right !important; font-variant-numeric: tabular-nums; white-space: nowrap; }
table.bins { border-collapse: collapse; width: 100%; font-size: 13px; } table.bins td, table.bins th { padding: 1px 6px; text-align: left; }
summary { color: var(--quiet); font-size: 13px; cursor: pointer; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 3px 14px; margin: 6px 0; font-size: 14px; }
dt { color: var(--quiet); } dd { margin: 0; overflow-wrap: anywhere; }
footer { margin: 40px 0 20px; color: var(--quiet); font-size: 13px; text-align: center; }
"""
