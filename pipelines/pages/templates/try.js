// The page of `unetpp try`. It asks its own server alone, by addresses below its own.
"use strict";
(() => {
  const at = (id) => document.getElementById(id);
  const work = at("work"), names = work.dataset.names.split(" "), { beside, role } = work.dataset;
  const slider = at("depth"), bars = [...at("bars").children]; // no slider where there is one depth
  const figures = [...document.querySelectorAll(".panes figure")];
  const panes = figures.map((one) => one.querySelector(".pane"));
  let image = null, answers = {}, asked = null;

  const ask = async (path, signal, options = {}) => {
    const answer = await fetch(path, { ...options, signal });
    const found = await answer.json();
    if (!answer.ok) throw new Error(found.error);
    return found;
  };
  const told = (ms) =>
    ms >= 10000 ? `${(ms / 1000).toFixed(1)} s` : `${ms < 10 ? ms.toFixed(1) : Math.round(ms).toLocaleString("en")} ms`;
  const percent = (share) => (share && share < 0.001 ? "less than 0.1" : (100 * share).toFixed(1));

  // The image, then the depth beside which all others are shown, then the others, each as it comes.
  const begin = async (path, options) => {
    asked?.abort();
    asked = new AbortController();
    const { signal } = asked;
    at("failed").hidden = true;
    at("status").textContent = "Reading the image …";
    try {
      const found = await ask(path, signal, { method: "POST", ...options });
      image = found;
      answers = {};
      work.hidden = false;
      draw();
      for (const name of [beside, ...names.filter((one) => one !== beside)]) {
        const began = Date.now();
        const tell = () => (at("status").textContent = `Computing ${name} … ${Math.round((Date.now() - began) / 1000)} s`);
        const clock = setInterval(tell, 1000);
        tell();
        try {
          answers[name] = await ask(`images/${found.id}/${name}`, signal);
        } finally {
          clearInterval(clock);
        }
        draw();
      }
      at("status").textContent = "";
    } catch (error) {
      if (signal.aborted) return; // another image was chosen
      at("status").textContent = "";
      at("failed").textContent =
        error instanceof TypeError ? "The server does not answer: is `unetpp try` still running?" : error.message;
      at("failed").hidden = false;
    }
  };
  const take = (file) => {
    if (!file) return;
    for (const one of document.querySelectorAll('input[name="example"]')) one.checked = false;
    if (file.size > Number(work.dataset.mib) * 2 ** 20) {
      at("failed").textContent = `${file.name}: found ${(file.size / 2 ** 20).toFixed(0)} MiB; expected at most ${work.dataset.mib}: \`unetpp predict\` takes larger files`;
      at("failed").hidden = false;
    } else begin(`images?name=${encodeURIComponent(file.name)}`, { body: file });
  };

  const fit = () => {
    if (!image) return;
    const room = panes[0].clientWidth, tall = Math.max(200, Math.min(640, innerHeight * (figures[0].parentElement.clientWidth < 640 ? 0.34 : 0.6)));
    const whole = Math.min(room / image.width, tall / image.height);
    const scale = Number(at("zoom").value) || whole;
    for (const pane of panes) {
      pane.style.setProperty("--height", `${Math.ceil(Math.min(tall, Math.max(whole, scale) * image.height))}px`);
      const sheet = pane.firstElementChild;
      sheet.setAttribute("width", scale * image.width);
      sheet.setAttribute("height", scale * image.height);
      pane.classList.toggle("pans", scale > whole);
      pane.classList.toggle("enlarged", scale * image.step >= 1.5);
    }
  };
  const draw = () => {
    const now = slider ? names[Number(slider.value)] : names[0];
    at("name").textContent = image.name;
    const reduced = image.step > 1 ? `, shown at 1/${image.step}; saved files have the full size` : "";
    at("size").textContent = `${image.width} × ${image.height} px${reduced}`;
    at("outlined-label").hidden = image.outline === null;
    at("opacity").disabled = !at("filled").checked;
    fit();
    figures.forEach((figure, index) => {
      const name = index ? beside : now, answer = answers[name];
      const [base, layer, outline] = figure.querySelector("svg").children;
      const w = Math.ceil(image.width / image.step), h = Math.ceil(image.height / image.step);
      figure.querySelector("svg").setAttribute("viewBox", `0 0 ${w} ${h}`);
      for (const one of [base, layer]) {
        one.setAttribute("width", w);
        one.setAttribute("height", h);
      }
      base.setAttribute("href", image.image);
      if (answer) layer.setAttribute("href", at("filled").checked ? answer.filled : answer.lines);
      else layer.removeAttribute("href");
      layer.style.opacity = at("filled").checked ? at("opacity").value / 100 : 1;
      for (const one of outline.children) one.setAttribute("d", (at("outlined").checked && image.outline) || "");
      const [title, said] = figure.querySelector("figcaption").children;
      title.textContent = name + (name === beside && role !== "only" ? `, ${role === "deepest" ? "the deepest" : role}` : "");
      if (answer) title.textContent += `: ${told(answer.ms)}`;
      const differs = answer && name !== beside && answer.differs !== null;
      said.title = answer?.why ?? "";
      said.textContent = !answer
        ? "computing …"
        : `by ${answer.engine}${answer.passes > 1 ? "" : ", one pass"}` +
          (answer.objects === null ? "" : `; ${answer.objects.toLocaleString("en")} object${answer.objects === 1 ? "" : "s"}`) + (differs ? `; ${percent(answer.differs)} % of the pixels differ from ${beside}` : "");
    });
    if (slider) {
      at("depth-said").textContent = now;
      slider.setAttribute("aria-valuetext", now + (answers[now] ? `, ${told(answers[now].ms)}` : ""));
    }
    const longest = Math.max(...Object.values(answers).map((one) => one.ms), 1e-9);
    bars.forEach((bar, index) => {
      const answer = answers[names[index]];
      bar.children[1].style.setProperty("--value", answer ? answer.ms / longest : 0);
      bar.children[2].textContent = answer ? told(answer.ms) : "…";
      bar.classList.toggle("now", names[index] === now);
    });
    at("saves").replaceChildren(
      ...(answers[now]?.files ?? []).map((file, index) => {
        const item = document.createElement("li"), link = document.createElement("a");
        link.href = `images/${image.id}/${now}/${index}.png`;
        link.download = file.name;
        link.textContent = `Save ${file.label} of ${now}`;
        item.append(link);
        return item;
      }),
    );
  };

  at("file").addEventListener("change", (event) => {
    take(event.target.files[0]);
    event.target.value = ""; // so that the same file can be chosen again
  });
  let inside = 0; // how many elements deep what is dragged is
  addEventListener("dragenter", () => document.body.classList.toggle("over", ++inside > 0));
  addEventListener("dragleave", () => document.body.classList.toggle("over", --inside > 0));
  addEventListener("dragover", (event) => event.preventDefault());
  addEventListener("drop", (event) => {
    event.preventDefault();
    document.body.classList.toggle("over", (inside = 0) > 0);
    take(event.dataTransfer.files[0]);
  });
  addEventListener("paste", (event) => take(event.clipboardData.files[0]));
  const examples = [...document.querySelectorAll('input[name="example"]')];
  for (const one of examples) one.addEventListener("change", () => begin(`examples/${one.value}`));

  slider?.addEventListener("input", draw);
  for (const one of ["opacity", "filled", "outlined"]) at(one).addEventListener("input", () => image && draw());
  at("zoom").addEventListener("input", fit);
  addEventListener("resize", fit);
  addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1 }[event.key];
    const own = event.target.closest("input, select, .pans"); // what the arrows move there is its own
    if (!step || !slider || !image || own || event.ctrlKey || event.altKey || event.metaKey) return;
    slider.value = Number(slider.value) + step;
    event.preventDefault();
    draw();
  });

  // Both panes show the same place. A pane that was put there has a scroll event to come, by which time the other may
  // have moved on: that event must not call the other back.
  const put = new Map();
  panes.forEach((pane) => {
    let grabbed = null; // the point of the content that the pointer holds
    pane.addEventListener("scroll", () => {
      const { scrollLeft, scrollTop } = pane;
      if (put.get(pane)?.left === scrollLeft && put.get(pane)?.top === scrollTop) return;
      put.delete(pane);
      for (const other of panes) {
        if (other === pane) continue;
        Object.assign(other, { scrollLeft, scrollTop });
        put.set(other, { left: other.scrollLeft, top: other.scrollTop });
      }
    });
    pane.addEventListener("pointerdown", (event) => {
      if (event.target === pane) return; // its scroll bars
      pane.setPointerCapture(event.pointerId);
      pane.classList.add("held");
      grabbed = { x: pane.scrollLeft + event.clientX, y: pane.scrollTop + event.clientY };
    });
    for (const end of ["pointerup", "pointercancel"])
      pane.addEventListener(end, () => {
        pane.classList.remove("held");
        grabbed = null;
      });
    pane.addEventListener("pointermove", (event) => {
      if (!grabbed) return;
      pane.scrollLeft = grabbed.x - event.clientX;
      pane.scrollTop = grabbed.y - event.clientY;
    });
  });

  examples.find((one) => one.checked)?.dispatchEvent(new Event("change"));
})();
