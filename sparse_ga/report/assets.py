"""The fixed parts of a report: page, style and script."""

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>sparse_ga report</title>
<link rel="icon" href="data:,">
<style>$style</style>
</head>
<body>
<nav><a href="#warnings">warnings</a><a href="#scene">3D</a><a href="#images">images</a><a href="#pairs">pairs</a><a
href="#residuals">residuals</a><a href="#cameras">cameras</a><a href="#stages">stages</a></nav>
<main>
$body
</main>
<script>$plotly</script>
<script>$script</script>
</body>
</html>
"""

STYLE = """
:root { --ink: #1f2933; --soft: #616e7c; --line: #dde3ea; --card: #fff; --bad: #c53030; --good: #1f8a4c; }
* { box-sizing: border-box; }
html { scroll-behavior: smooth; scroll-padding-top: 3rem; }
body { margin: 0; background: #f3f5f8; color: var(--ink);
  font: 15px/1.45 system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif; }
nav { position: sticky; top: 0; z-index: 5; display: flex; gap: 1.2rem; padding: .55rem 1.5rem; background: #1f2933; }
nav a { color: #e4e9ef; text-decoration: none; font-size: .9rem; }
nav a:hover { color: #fff; text-decoration: underline; }
main { max-width: 1320px; margin: 0 auto; padding: 1rem 1.5rem 4rem; }
h1 { font-size: 1.5rem; margin: .4rem 0 .8rem; }
h2 { font-size: 1.15rem; margin: 0 0 .4rem; }
h3 { font-size: .95rem; margin: 1rem 0 .3rem; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 1rem 1.2rem;
  margin: 1rem 0; overflow: hidden; }
.note { color: var(--soft); font-size: .87rem; margin: .1rem 0 .6rem; }
.empty { color: var(--soft); font-style: italic; }
.facts { display: flex; flex-wrap: wrap; gap: .8rem; }
.fact { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: .6rem 1rem;
  flex: 1 1 9rem; }
.fact b { display: block; font-size: 1.25rem; white-space: nowrap; }
.fact span { color: var(--soft); font-size: .82rem; }
.fact.bad b { color: var(--bad); }
.warn { border-left: 5px solid #d9822b; background: #fffaf2; }
.fine { border-left: 5px solid var(--good); }
.fine p, .warn ul { margin: .2rem 0; }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(200px, 1fr)); gap: .8rem; }
figure { margin: 0; }
.card { border: 1px solid var(--line); border-radius: 6px; overflow: hidden; font-size: .82rem; }
.card img { display: block; width: 100%; background: #222; }
.card figcaption { padding: .45rem .6rem .6rem; }
.card b, .pair b { display: block; overflow-wrap: anywhere; }
.card p, .pair p { margin: .15rem 0 0; color: var(--soft); overflow-wrap: anywhere; }
.card p.reason { max-height: 7.5em; overflow: auto; }
.card p.advice { color: var(--ink); }
.badge { display: inline-block; border-radius: 9px; padding: 0 .5rem; font-size: .75rem; color: #fff; }
.badge.good { background: var(--good); }
.badge.bad { background: var(--bad); }
.two { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(480px, 100%), 1fr)); gap: 1rem; }
.two > div { min-width: 0; }
.pair-row { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(340px, 100%), 1fr)); gap: .8rem; }
.pair img { width: 100%; display: block; border-radius: 4px; }
.pair { font-size: .82rem; }
.pair img { cursor: zoom-in; }
.pair.large { grid-column: 1 / -1; }
.pair.large img { cursor: zoom-out; }
.scroll { overflow: auto; max-height: 460px; }
table { border-collapse: collapse; font-size: .84rem; width: 100%; }
th, td { text-align: left; padding: .25rem .7rem; border-bottom: 1px solid var(--line); vertical-align: top; }
th { position: sticky; top: 0; background: var(--card); color: var(--soft); font-weight: 600; }
details { margin-top: .5rem; }
summary { cursor: pointer; font-size: .9rem; }
code { background: #eef1f5; padding: 0 .25rem; border-radius: 3px; }
.figure { width: 100%; }
@media print { nav { display: none; } .scroll { max-height: none; } }
"""

SCRIPT = """
for (const source of document.querySelectorAll('script.figure-data')) {
  const figure = JSON.parse(source.textContent);
  const options = {responsive: true, displaylogo: false, displayModeBar: 'hover',
    scrollZoom: /^(scene|object)-/.test(source.dataset.for)};
  Plotly.newPlot(source.dataset.for, figure.data, figure.layout, options);
}
for (const picture of document.querySelectorAll('.pair img'))
  picture.addEventListener('click', () => picture.closest('.pair').classList.toggle('large'));
const times = document.getElementById('stage-seconds');
if (times) {
  const seconds = JSON.parse(times.textContent);
  seconds.all = Object.values(seconds).reduce((sum, value) => sum + value, 0);
  for (const row of document.querySelectorAll('#stage-table tbody tr')) {
    const value = seconds[row.cells[0].textContent];
    if (value !== undefined) row.cells[3].textContent = value.toFixed(1) + ' s';
  }
}
"""
