"use strict";
// Draws the charts of the page, lets one choose an episode, and, on a watched run, keeps the page up to date.
(() => {
  const started = new Map();
  const views = new Map();
  let charts = {};
  let episodes = null;
  let chosen = null;
  let observer = null;
  let generation = 0;
  const $ = (id) => document.getElementById(id);

  // ---- charts ----
  function showTooltip(_handler, event, _item, value) {
    const box = $("tooltip");
    if (value === null || value === undefined || value === "") { box.hidden = true; return; }
    const table = document.createElement("table");
    for (const [name, text] of Object.entries(typeof value === "object" ? value : { "": value })) {
      if (text === "" || text === "null" || text === "NaN") continue;
      const row = table.insertRow();
      row.appendChild(document.createElement("th")).textContent = name;
      row.insertCell().textContent = text;
    }
    box.replaceChildren(table);
    box.hidden = false;
    const { width, height } = box.getBoundingClientRect();
    const x = event.clientX + 14 + width > innerWidth ? event.clientX - width - 10 : event.clientX + 14;
    const y = event.clientY + 14 + height > innerHeight ? event.clientY - height - 10 : event.clientY + 14;
    box.style.left = `${Math.max(4, x)}px`;
    box.style.top = `${Math.max(4, y)}px`;
  }

  async function draw(element) {
    const name = element.dataset.chart, now = generation;
    if (started.has(name)) return started.get(name);
    const work = (async () => {
      const { spec, data } = charts[name];
      const rows = name.startsWith("episode-") && episodes ? rowsOf(chosen) : data;
      const filled = { ...spec, data: spec.data.map((set) => (set.name in data ? { ...set, values: rows[set.name] } : set)) };
      const options = { mode: "vega", renderer: "svg", actions: false, defaultStyle: false, hover: true, logLevel: 1, tooltip: showTooltip };
      const shown = chosen;
      const { view } = await vegaEmbed(element, filled, options);
      if (now !== generation) { view.finalize(); return; }
      views.set(name, view);
      if (name === "strip") view.addEventListener("click", (_event, item) => { if (item && item.datum && item.datum.episode) choose(item.datum.episode); });
      if (shown !== chosen && name.startsWith("episode-")) refill(name, view);
      element.dataset.drawn = "1";
      element.style.minHeight = "";
    })();
    started.set(name, work);
    return work;
  }

  function refill(name, view) {
    const rows = rowsOf(chosen);
    for (const key of Object.keys(charts[name].data)) view.data(key, rows[key]);
    return view.runAsync();
  }

  const waiting = () => [...document.querySelectorAll("[data-chart]")].filter((element) => !started.has(element.dataset.chart));
  function drawAll() { waiting().forEach(draw); return Promise.all(started.values()); }

  function drawNearFirst() {
    observer = new IntersectionObserver((entries) => entries.forEach((entry) => {
      if (entry.isIntersecting) { observer.unobserve(entry.target); draw(entry.target); }
    }), { rootMargin: "300px" });
    waiting().forEach((element) => observer.observe(element));
    // The rest follows one at a time while the page is idle, so that searching in it and printing find everything.
    const now = generation;
    const idle = window.requestIdleCallback || ((work) => setTimeout(work, 60));
    const another = () => {
      if (now !== generation) return;
      const next = waiting()[0];
      if (next) draw(next).then(() => idle(another));
    };
    setTimeout(() => idle(another), 500);
  }

  // ---- episodes ----
  async function unpack() {
    const packed = $("packed-episodes").textContent.trim();
    if (!packed) return null;
    const bytes = Uint8Array.from(atob(packed), (letter) => letter.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return JSON.parse(await new Response(stream).text());
  }

  const nice = (value, digits = 1) => value === null || value === undefined ? "–" : value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
  const letterOf = (stage) => Object.keys(episodes.stageNames).find((letter) => episodes.stageNames[letter] === stage);

  function rowsOf(i) {
    const per = episodes.perEpoch, stages = [...episodes.stages[i]].map((letter) => episodes.stageNames[letter]);
    const taken = [...episodes.decisions[i]].map((letter) => episodes.actionNames[letter] || "?");
    const rollbacks = episodes.rollbacks[i] || {};
    const at = (name, e) => { const value = per[name][i][e]; return value === undefined ? null : value; };
    const epochs = stages.map((stage, e) => ({
      epoch: e + 1, stage, decision: taken[e], val: at("val_accuracy", e), train: at("train_accuracy", e), alpha: at("alpha", e),
      contribution: at("contribution", e), seedGradient: at("gradient_norm", e), hostGradient: at("host_gradient_norm", e), reward: at("reward", e),
    }));
    const segments = [];
    stages.forEach((stage, e) => {
      const last = segments[segments.length - 1];
      if (last && last.stage === stage) { last.to = e + 1.5; last.end = e + 1; }
      else segments.push({ lane: "stage", stage, from: e + 0.5, to: e + 1.5, start: e + 1, end: e + 1 });
    });
    for (const part of segments) {
      part.middle = (part.from + part.to) / 2;
      part.epochs = part.start === part.end ? `${part.start}` : `${part.start} to ${part.end}`;
      // Its name where there is room for about 8 pixels a letter, else its letter.
      const width = ($("chart-episode-stages").clientWidth - 70) * (part.to - part.from) / stages.length;
      part.label = width > 8.5 * part.stage.length ? part.stage : letterOf(part.stage);
    }
    const decisions = [];
    taken.forEach((decision, e) => {
      if (decision === "WAIT") return;
      const kind = decision === "FOSSILIZE" ? "fossilize" : decision === "CULL" ? "cull" : "germinate";
      decisions.push({ lane: "decision", epoch: e + 1, decision, kind, why: "" });
    });
    for (const [epoch, why] of Object.entries(rollbacks)) decisions.push({ lane: "decision", epoch: +epoch, decision: "rollback", kind: "roll back", why });
    return { epochs, segments, decisions };
  }

  function showFacts(i) {
    const facts = [
      ["episode", nice(episodes.episode[i], 0)],
      ["iteration", nice(episodes.iteration[i], 0)],
      ["kept validation accuracy", `${nice(episodes.kept[i])} %`],
      ["return", nice(episodes.return[i], 2)],
      ["kept blueprint", episodes.blueprint[i] || "none"],
      ["parameters added", `${nice(episodes.added[i], 0)} (host ${nice(episodes.hostParameters[i], 0)})`],
      ["host seed", episodes.seed[i]],
    ];
    for (const [name, value] of Object.entries(episodes.hosts[episodes.host[i]])) facts.push([name.replace(/^host\./, ""), String(value)]);
    $("episode-facts").replaceChildren(...facts.map(([name, text]) => {
      const part = document.createElement("div");
      part.appendChild(document.createElement("dt")).textContent = name;
      part.appendChild(document.createElement("dd")).textContent = text;
      return part;
    }));
  }

  function show(i) {
    chosen = i;
    $("number").value = episodes.episode[i];
    $("chooser-message").textContent = "";
    showFacts(i);
    for (const [name, view] of views) if (name.startsWith("episode-")) refill(name, view);
    try { history.replaceState(null, "", `#episode=${episodes.episode[i]}`); } catch (_) { /* a page in a frame may not */ }
  }

  function choose(number) {
    const exact = episodes.episode.indexOf(number);
    if (exact >= 0) { show(exact); return; }
    const last = episodes.episode[episodes.episode.length - 1];
    let nearest = 0;
    episodes.episode.forEach((known, i) => { if (Math.abs(known - number) < Math.abs(episodes.episode[nearest] - number)) nearest = i; });
    show(nearest);
    $("chooser-message").textContent = number < 1 || number > last || !Number.isFinite(number)
      ? `There are episodes 1 to ${last}; this is the nearest.` : `Episode ${number} is not in this page; this is the nearest.`;
  }

  function candidates() {
    const kept = $("kept-blueprint").value;
    const all = episodes.episode.map((_, i) => i);
    return kept === "*" ? all : all.filter((i) => (episodes.blueprint[i] || "") === kept);
  }

  const byKept = (pool) => [...pool].sort((a, b) => episodes.kept[a] - episodes.kept[b] || b - a);

  function median() {
    const pool = candidates();
    const last = pool.reduce((most, i) => Math.max(most, episodes.iteration[i]), 0);
    const ranked = byKept(pool.filter((i) => episodes.iteration[i] === last));
    return ranked[ranked.length >> 1];
  }

  function preset(name) {
    const pool = candidates(), ranked = byKept(pool);
    const picked = { best: ranked[ranked.length - 1], worst: ranked[0], median: median(), first: pool[0], last: pool[pool.length - 1] }[name];
    if (picked !== undefined) show(picked);
  }

  function step(by) {
    const pool = candidates();
    const next = by > 0 ? pool.find((i) => i > chosen) : [...pool].reverse().find((i) => i < chosen);
    if (next !== undefined) show(next);
  }

  function startChooser(remembered) {
    const blueprints = [...new Set(episodes.blueprint.map((name) => name || ""))].sort();
    for (const name of blueprints) {
      const option = document.createElement("option");
      option.value = name;
      option.textContent = name || "nothing";
      $("kept-blueprint").append(option);
    }
    $("number").max = episodes.episode[episodes.episode.length - 1];
    $("number").addEventListener("change", () => choose(Math.round($("number").valueAsNumber)));
    $("previous").addEventListener("click", () => step(-1));
    $("next").addEventListener("click", () => step(1));
    $("kept-blueprint").addEventListener("change", () => { if (!candidates().includes(chosen)) preset("best"); });
    document.querySelectorAll("[data-preset]").forEach((button) => button.addEventListener("click", () => preset(button.dataset.preset)));
    const asked = remembered || Number((location.hash.match(/^#episode=(\d+)$/) || [])[1]);
    if (asked && episodes.episode.includes(asked)) { chosen = episodes.episode.indexOf(asked); $("number").value = asked; showFacts(chosen); }
    else {
      chosen = median();  // what the policy does in the end, rather than its luckiest host
      $("number").value = episodes.episode[chosen];
      showFacts(chosen);
    }
  }

  // ---- the page as a whole ----
  async function start(remembered, filter) {
    generation += 1;
    charts = JSON.parse($("charts").textContent);
    episodes = await unpack();
    if (episodes && $("number")) {
      startChooser(remembered);
      if (filter && [...$("kept-blueprint").options].some((option) => option.value === filter)) $("kept-blueprint").value = filter;
    }
    document.querySelectorAll("[data-copy]").forEach((button) => button.addEventListener("click", () => copy(button)));
    const links = [...document.querySelectorAll("nav a")];
    const here = new IntersectionObserver((entries) => entries.forEach((entry) => {
      if (entry.isIntersecting) links.forEach((link) => link.classList.toggle("here", link.hash === `#${entry.target.id}`));
    }), { rootMargin: "-20% 0px -70% 0px" });
    document.querySelectorAll("main section").forEach((section) => here.observe(section));
    drawNearFirst();
  }

  async function copy(button) {
    const element = $(button.dataset.copy);
    try { await navigator.clipboard.writeText(element.textContent); button.textContent = "Copied"; }
    catch (_) { getSelection().selectAllChildren(element); button.textContent = "Selected"; }
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  }

  // Puts the new page into the place of the old one: the window stays where it is, and so does the chosen episode.
  async function replace() {
    const answer = await fetch("/");
    if (!answer.ok) throw new Error((await answer.text()).trim());
    const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
    const remembered = episodes ? episodes.episode[chosen] : 0;
    const filter = $("kept-blueprint") ? $("kept-blueprint").value : "";
    const opened = [...document.querySelectorAll("details")].map((element) => element.open);
    const heights = new Map([...document.querySelectorAll("[data-chart]")].map((element) => [element.id, element.offsetHeight]));
    const top = scrollY;
    generation += 1;
    views.forEach((view) => view.finalize());
    views.clear();
    started.clear();
    if (observer) observer.disconnect();
    $("tooltip").hidden = true;
    $("report").replaceWith(fresh.getElementById("report"));
    document.title = fresh.title;
    document.querySelectorAll("details").forEach((element, i) => { element.open = opened[i] ?? element.open; });
    heights.forEach((height, id) => { if ($(id) && height) $(id).style.minHeight = `${height}px`; });
    scrollTo({ top, behavior: "instant" });
    await start(remembered, filter);
  }

  async function watch() {
    let known = (await (await fetch("/version")).json()).version;
    for (;;) {
      await new Promise((resolve) => setTimeout(resolve, 2000));
      let text = null;
      try {
        const news = await (await fetch("/version")).json();
        if (news.version !== known) {
          await replace();
          known = news.version;
          document.body.dataset.updates = 1 + Number(document.body.dataset.updates || 0);
        }
        const status = document.querySelector(".status").textContent;
        const kind = document.querySelector(".kind").textContent.includes("Search") ? "search" : "run";
        const minutes = Math.max(1, Math.round(news.still_seconds / 60));
        if (status === "complete" || status === "interrupted") text = `Live: the ${kind} has ended; this is its final state.`;
        else if (news.still_seconds > Number($("report").dataset.standstill)) text = `Live: nothing has been written for ${minutes} min; the ${kind} seems to stand still.`;
        else text = `Live: this page keeps itself up to date while the ${kind} goes on.`;
      } catch (error) { text = `Not up to date: ${error instanceof TypeError ? "the server does not answer; is esper-ray watch still running?" : error.message}`; }
      if ($("live") && $("live").textContent !== text) $("live").textContent = text;
    }
  }

  window.addEventListener("beforeprint", drawAll);
  let resizing = 0;
  window.addEventListener("resize", () => {
    clearTimeout(resizing);
    resizing = setTimeout(() => { const view = views.get("episode-stages"); if (view && episodes) refill("episode-stages", view); }, 150);
  });
  document.addEventListener("keydown", (event) => {
    if (!episodes || event.altKey || event.ctrlKey || event.metaKey || /INPUT|SELECT|TEXTAREA/.test(event.target.tagName)) return;
    if (event.key === "ArrowLeft") step(-1);
    if (event.key === "ArrowRight") step(1);
  });
  window.esperReport = { drawAll, choose, chosen: () => (episodes ? episodes.episode[chosen] : null), views };
  window.esperReport.ready = start().then(() => { if (document.body.dataset.live) watch(); });
})();
