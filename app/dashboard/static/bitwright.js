/* Behaviour of Bitwright's pages; a saved report carries a copy and uses the figures only. No dependencies but Plotly. */
"use strict";

(() => {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const narrow = matchMedia("(max-width: 38rem)");
  const CONFIG = {
    responsive: true,
    displaylogo: false,
    showTips: false,
    // A list of what is wanted: the library's own set includes sharing figures through its maker's cloud.
    modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]],
    plotlyServerURL: "",
    toImageButtonOptions: { format: "svg", filename: "bitwright" },
  };

  // ---- Figures -------------------------------------------------------------------------------------------------

  /** The figure's layout with the page's colours laid over it; on a narrow page with less around the plot. */
  function themed(layout) {
    const css = getComputedStyle(document.documentElement);
    const colour = (name) => css.getPropertyValue(name).trim();
    const result = structuredClone(layout);
    result.font = { ...result.font, color: colour("--soft") };
    result.hoverlabel = {
      ...result.hoverlabel,
      bgcolor: colour("--surface"),
      bordercolor: colour("--line-strong"),
      font: { ...result.hoverlabel?.font, color: colour("--text") },
    };
    result.modebar = { bgcolor: "rgba(0,0,0,0)", color: colour("--line-strong"), activecolor: colour("--accent") };
    result.uirevision = "kept";
    for (const key of Object.keys(result)) {
      if (/^[xy]axis\d*$/.test(key)) {
        result[key].gridcolor = colour("--grid");
        result[key].linecolor = colour("--line-strong");
      }
    }
    if (narrow.matches) {
      result.font.size = 11;
      result.dragmode = false;
    }
    return result;
  }

  /** The traces; on a narrow page with a slim colour bar, and with marks no wider than their columns. */
  function themedData(data, box) {
    if (!narrow.matches) return data;
    return data.map((trace) => {
      if (trace.colorbar) {
        return { ...trace, colorbar: { ...trace.colorbar, title: { text: "" }, thickness: 8, tickfont: { size: 9 } } };
      }
      if (trace.name !== "chosen") return trace;
      const size = Math.max(3, Math.min(trace.marker.size, (0.6 * box.clientWidth) / trace.x.length));
      return { ...trace, marker: { ...trace.marker, size, line: { ...trace.marker.line, width: 0.75 } } };
    });
  }

  let figures = {};

  function readFigures(root) {
    const source = root.getElementById("figure-data");
    return source ? JSON.parse(source.textContent) : {};
  }

  function draw() {
    if (!window.Plotly) return;
    for (const box of document.querySelectorAll("[data-figure]")) {
      const figure = figures[box.dataset.figure];
      if (!figure) continue;
      // The box, not the layout, holds the height: the library forgets the layout's when the window changes its width.
      box.style.height = `${figure.layout.height}px`;
      window.Plotly.react(box, themedData(figure.data, box), themed(figure.layout), CONFIG);
    }
    followSlider();
  }

  // ---- Taking over a newer version of the page ---------------------------------------------------------------------

  /** Put the sections of `fresh` in place of ours. Drawn figures and the form being filled in stay as they are. */
  function takeOver(fresh) {
    const main = document.querySelector("main");
    const newMain = fresh.querySelector("main");
    if (!main || !newMain) return;
    let last = null;
    for (const section of [...newMain.children]) {
      const old = section.id && document.getElementById(section.id);
      let current = old;
      if (!old) current = document.importNode(section, true);
      else if (!old.matches("[data-keep]") && old.outerHTML !== section.outerHTML) replaceSection(old, section);
      current = (section.id && document.getElementById(section.id)) || current;
      if (last) last.after(current);
      else if (main.firstElementChild !== current) main.prepend(current);
      last = current;
    }
    const ids = new Set([...newMain.children].map((section) => section.id));
    for (const section of [...main.children]) if (!ids.has(section.id)) section.remove();
    for (const name of ["data-events", "data-refresh", "data-state"]) {
      if (newMain.hasAttribute(name)) main.setAttribute(name, newMain.getAttribute(name));
      else main.removeAttribute(name);
    }
    document.title = fresh.title;
    figures = readFigures(fresh);
    draw();
    tellAges();
  }

  /** Replace a section, but keep its drawn figure, its open details and the place of the keyboard. */
  function replaceSection(old, section) {
    const copy = document.importNode(section, true);
    if (old.tagName === "DETAILS") copy.open = old.open;
    for (const box of old.querySelectorAll("[data-figure]")) {
      const twin = copy.querySelector(`[data-figure="${box.dataset.figure}"]`);
      if (twin) twin.replaceWith(box);
    }
    const focused = old.contains(document.activeElement) ? document.activeElement.id : "";
    old.replaceWith(copy);
    if (focused) document.getElementById(focused)?.focus({ preventScroll: true });
  }

  let refreshing = null;

  /** Fetch this page again and take it over; calls while one is under way share it. */
  function refresh() {
    refreshing ??= fetch(location.href, { headers: { Accept: "text/html" } })
      .then(async (answer) => {
        if (answer.ok) takeOver(new DOMParser().parseFromString(await answer.text(), "text/html"));
        return answer.ok;
      })
      .catch(() => false)
      .finally(() => { refreshing = null; });
    return refreshing;
  }

  // ---- Live progress -----------------------------------------------------------------------------------------------

  const REFRESH_MS = 3000;
  let stream = null;
  let refreshedAt = performance.now();

  function duration(seconds) {
    const whole = Math.round(seconds);
    if (whole < 60) return `${whole}\u2009s`;
    const [big, small, bigName, smallName] = whole >= 86400 ? [86400, 3600, "d", "h"] : whole >= 3600 ? [3600, 60, "h", "min"] : [60, 1, "min", "s"];
    const rest = Math.floor((whole % big) / small);
    return `${Math.floor(whole / big)}\u2009${bigName}${rest ? ` ${rest}\u2009${smallName}` : ""}`;
  }

  let told = null;

  /** Show what an event told; whether the page's progress card is about the same stage. */
  function showProgress() {
    const card = document.getElementById("progress");
    if (!card || !told || card.dataset.stage !== (told.progress.stage ?? "")) return false;
    const { fraction, done, total, unit, detail, eta_seconds: eta, elapsed_seconds: elapsed } = told.progress;
    const since = (performance.now() - told.at) / 1000;
    card.querySelector("progress").value = fraction;
    card.querySelector("[data-done]").textContent = `${done} of ${total} ${unit}`;
    card.querySelector("[data-detail]").textContent = detail ? `: ${detail}` : "";
    card.querySelector("[data-fraction]").textContent = `${Math.floor(100 * fraction)}\u2009%`;
    card.querySelector("[data-eta]").textContent =
      eta === null ? "estimating the time left" : eta - since < 1 ? "nearly there" : `about ${duration(eta - since)} left`;
    card.querySelector("[data-elapsed]").textContent = `${duration(elapsed + since)} so far`;
    return true;
  }

  function follow() {
    const url = document.querySelector("main")?.dataset.events;
    if (!url || stream) return;
    stream = new EventSource(url);
    stream.addEventListener("progress", (event) => {
      told = { progress: JSON.parse(event.data).progress, at: performance.now() };
      if (showProgress()) renewSoon();
      else renew();
    });
    stream.addEventListener("state", (event) => {
      const { state, progress } = JSON.parse(event.data);
      if (document.querySelector("main").dataset.state !== `${state} ${progress.stage ?? ""}`) renew();
    });
    stream.addEventListener("done", renew);
    stream.addEventListener("error", () => {
      // The browser connects again by itself, except after an answer that forbids it.
      if (stream?.readyState === EventSource.CLOSED) {
        stop();
        setTimeout(() => refresh().then(follow), REFRESH_MS);
      }
    });
  }

  let renewal = 0;

  /** Renew the page, figures included, but no more often than every few seconds, and not while nobody looks. */
  function renewSoon() {
    if (renewal || document.hidden) return;
    renewal = setTimeout(renew, Math.max(0, refreshedAt + REFRESH_MS - performance.now()));
  }

  /** Take over the page as it is now; stop listening once the job has ended. */
  function renew() {
    clearTimeout(renewal);
    renewal = 0;
    refreshedAt = performance.now();
    return refresh().then(() => {
      if (!document.querySelector("main")?.dataset.events) stop();
    });
  }

  function stop() {
    stream?.close();
    stream = null;
  }

  function refreshList() {
    const seconds = Number(document.querySelector("main")?.dataset.refresh);
    if (!seconds) return;
    setTimeout(() => (document.hidden ? Promise.resolve() : refresh()).then(refreshList), 1000 * seconds);
  }

  // ---- Actions -----------------------------------------------------------------------------------------------------

  async function post(url, body) {
    const answer = await fetch(url, {
      method: "POST",
      headers: { "Content-Type": "application/json", Accept: "application/json" },
      body: JSON.stringify(body),
    });
    const document_ = await answer.json().catch(() => ({}));
    if (!answer.ok) throw new Error(document_.detail || document_.title || `The server answered ${answer.status}.`);
    return document_;
  }

  function tell(form, message) {
    const place = form.querySelector("[role=alert]");
    place.textContent = message;
    place.hidden = !message;
  }

  async function cancelJob(form) {
    tell(form, "");
    const button = form.querySelector("button.danger");
    button.disabled = true;
    try {
      await post(form.action, {});
      form.closest("dialog").close();
      await renew();
    } catch (error) {
      tell(form, error.message);
    } finally {
      button.disabled = false;
    }
  }

  async function tryBudget(form) {
    tell(form, "");
    const button = form.querySelector("button[type=submit]");
    const output = form.querySelector("output");
    button.disabled = true;
    try {
      const plan = await post(form.action, { budget: form.elements.budget.value.trim(), measure: form.elements.measure.checked });
      await refresh();
      const row = document.querySelector(`[data-plan="${CSS.escape(plan.id)}"]`);
      row?.classList.add("fresh");
      const waiting = form.elements.measure.checked && !row?.dataset.measured;
      output.textContent = (row?.dataset.words ?? "") + (waiting ? " A worker is measuring it." : "");
      if (waiting) awaitMeasured(plan.id, 0);
    } catch (error) {
      output.textContent = "";
      tell(form, error.message);
    } finally {
      button.disabled = false;
    }
  }

  /** Look again until a worker has measured the plan: 1, 2, 3, … s apart, for some minutes. */
  function awaitMeasured(id, tries) {
    if (tries >= 30) return;
    setTimeout(async () => {
      await refresh();
      const row = document.querySelector(`[data-plan="${CSS.escape(id)}"]`);
      if (row && !row.dataset.measured) awaitMeasured(id, tries + 1);
    }, Math.min(1000 * (tries + 1), 10000));
  }

  /** While the slider moves: the budget in the field, and what the frontier predicts for it. */
  function followSlider(moved = false) {
    const slider = document.getElementById("budget-slider");
    const line = figures.frontier?.data.find((trace) => trace.name === "best predicted");
    if (!slider || !line) return;
    const average = Number(slider.value);
    const bits = average * Number(slider.dataset.weights);
    let at = -1;
    while (at + 1 < line.x.length && line.x[at + 1] * figures.frontier.layout.meta.bytes_per_unit * 8 <= bits * (1 + 1e-9)) at += 1;
    const [size, , cost] = line.customdata[Math.max(at, 0)];
    document.getElementById("budget-reading").textContent = `${average.toFixed(2)} bits on average: predicted ${cost} ${slider.dataset.metricUnit}, ${size}`;
    slider.setAttribute("aria-valuetext", `${average.toFixed(2)} bits`);
    if (moved) document.getElementById("budget").value = `${average.toFixed(2)} bits`;
  }

  async function copy(button) {
    const text = document.getElementById(button.dataset.copy).textContent;
    try {
      await navigator.clipboard.writeText(text);
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(document.getElementById(button.dataset.copy));
      button.textContent = "Press Ctrl+C";
    }
    setTimeout(() => { button.textContent = "Copy"; }, 2000);
  }

  function tellAges() {
    for (const element of document.querySelectorAll("time[data-age]")) {
      const seconds = Math.max(0, (Date.now() - Date.parse(element.dateTime)) / 1000);
      element.textContent = seconds < 10 ? "just now" : `${duration(seconds).split(" ")[0]} ago`;
    }
  }

  // ---- Start -------------------------------------------------------------------------------------------------------

  document.addEventListener("submit", (event) => {
    const form = event.target;
    const action = { cancel: cancelJob, try: tryBudget }[form.dataset.action];
    if (!action) return;
    event.preventDefault();
    action(form);
  });
  document.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    if (button.dataset.copy) copy(button);
    if (button.dataset.opens) document.getElementById(button.dataset.opens).showModal();
    if (button.dataset.closes !== undefined) button.closest("dialog").close();
  });
  document.addEventListener("input", (event) => { if (event.target.id === "budget-slider") followSlider(true); });
  dark.addEventListener("change", draw);
  narrow.addEventListener("change", draw);
  document.addEventListener("visibilitychange", () => { if (stream && !document.hidden) renewSoon(); });
  addEventListener("pagehide", stop);
  addEventListener("pageshow", (event) => { if (event.persisted) refresh().then(follow); });
  figures = readFigures(document);
  draw();
  tellAges();
  setInterval(tellAges, 15000);
  setInterval(showProgress, 1000);
  follow();
  refreshList();
})();
