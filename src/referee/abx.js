// Blind listening: 1 plays A, 2 plays B, x plays X, a and b answer. Results stay in this browser.
(() => {
  const key = "undertone-abx", root = document.getElementById("abx");
  if (!items.length) { root.hidden = true; return; }
  const $ = (id) => document.getElementById(id);
  const audio = new Audio();
  let results = [];
  try { results = JSON.parse(localStorage.getItem(key)) || []; } catch { results = []; }
  let trial;
  const pick = (n) => Math.floor(Math.random() * n);
  for (const [id, which] of [["left", 0], ["right", 1]]) {
    items[0].sounds.forEach((s, i) => $(id).add(new Option(s.name, i, false, i === which)));
  }
  const next = () => {
    trial = { item: pick(items.length), x: pick(2), a: +$("left").value, b: +$("right").value };
    $("trial").textContent = items[trial.item].name;
    audio.pause();
  };
  const play = (what) => {
    const sound = { 1: trial.a, 2: trial.b, x: trial.x ? trial.b : trial.a }[what];
    const at = audio.paused || audio.ended ? 0 : audio.currentTime;
    audio.src = items[trial.item].sounds[sound].wav;
    audio.currentTime = at;
    audio.play();
  };
  const show = () => {
    const pairs = new Map();
    for (const r of results) {
      const p = pairs.get(r.pair) || { n: 0, right: 0 };
      p.n += 1; p.right += r.right ? 1 : 0; pairs.set(r.pair, p);
    }
    // Chance of as many right answers or more by guessing.
    const tail = ({ n, right }) => {
      let term = Math.pow(0.5, n), sum = 0;
      for (let k = 0; k <= n; k++) { if (k >= right) sum += term; term *= (n - k) / (k + 1); }
      return sum;
    };
    $("results").textContent = [...pairs].map(([name, p]) =>
      `${name}: ${p.right} of ${p.n} right, p = ${tail(p).toFixed(3)}`).join("\n") || "no answers yet";
  };
  const answer = (x) => {
    const names = [trial.a, trial.b].map((i) => items[0].sounds[i].name);
    results.push({ item: items[trial.item].name, pair: names.join(" / "), right: x === trial.x });
    try { localStorage.setItem(key, JSON.stringify(results)); } catch { /* private window: kept until it closes */ }
    show(); next();
  };
  const act = { 1: () => play(1), 2: () => play(2), x: () => play("x"), a: () => answer(0), b: () => answer(1) };
  for (const b of root.querySelectorAll("button[data-key]")) b.onclick = act[b.dataset.key];
  document.addEventListener("keydown", (e) => {
    if (e.ctrlKey || e.metaKey || e.altKey || e.target.tagName === "SELECT") return;
    const f = act[e.key.toLowerCase()];
    if (f) { e.preventDefault(); f(); }
  });
  $("left").onchange = next; $("right").onchange = next;
  $("save").onclick = () => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([JSON.stringify(results, null, 1)], { type: "application/json" }));
    link.download = "abx.json"; link.click();
  };
  $("forget").onclick = () => { results = []; localStorage.removeItem(key); show(); };
  show(); next();
})();
