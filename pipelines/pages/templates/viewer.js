// The viewer of the depth report. All pictures are in the page; this script chooses which ones are shown.
"use strict";
(() => {
  const at = (id) => document.getElementById(id);
  const viewer = at("viewer");
  if (!viewer) return;
  const samples = [...document.querySelectorAll(".sample")];
  const slider = at("depth"); // null if there is only one depth
  const bars = [...at("bars").children];
  const modes = [...viewer.querySelectorAll('input[name="mode"]')];
  const strip = [...viewer.querySelectorAll('input[name="picked"]')];
  const median = samples.findIndex((one) => one.dataset.rank === "median");
  let picked = Math.max(0, median);

  const show = () => {
    const sample = samples[picked];
    const figures = [...sample.querySelectorAll("figure[data-name]")];
    const depth = slider ? Number(slider.value) : 0;
    const figure = figures[depth];
    const mode = modes.find((one) => one.checked).value;

    at("stage").setAttribute("viewBox", `0 0 ${sample.dataset.width} ${sample.dataset.height}`);
    at("stage-base").setAttribute("href", `#b${picked}`);
    at("stage-base").classList.toggle("grey", mode === "e");
    // If an outline is too fine to draw, its area is shown instead, unless another layer is shown.
    const fine = Boolean(sample.querySelector(".fine")), outlined = at("outlined").checked;
    const shown = mode || (fine && outlined ? "y" : ""), lines = at("filled").checked || fine ? "" : "l";
    const layers = { e: `e${picked}-${depth}`, m: `m${lines}${picked}-${depth}`, y: `y${lines}${picked}` };
    Object.assign(layers, { n: `n${picked}-${depth}`, t: `t${picked}` });
    at("stage-layer").setAttribute("href", `#${layers[shown] ?? ""}`);
    at("stage-outline").setAttribute("href", outlined && !fine ? `#o${picked}` : "#");
    at("too-fine").hidden = !fine;

    const id = sample.querySelector("h3 code").textContent;
    at("stage-said").textContent = `${id} – ${figure.dataset.said}`;
    if (slider) {
      const name = figure.dataset.said.split(":")[0];
      const iou = Number(figure.dataset.iou).toFixed(3);
      at("depth-said").textContent = name;
      slider.setAttribute("aria-valuetext", `${name}, IoU ${iou}`);
    }
    bars.forEach((bar, index) => {
      const iou = figures[index].dataset.iou;
      bar.children[1].style.setProperty("--value", iou || 0);
      bar.children[2].textContent = iou === "" ? "–" : Number(iou).toFixed(3);
      bar.classList.toggle("now", index === depth);
    });
    samples.forEach((one, index) => one.classList.toggle("picked", index === picked));
    const thumbnail = strip[picked].parentElement, row = at("strip");
    strip[picked].checked = true;
    row.scrollLeft = thumbnail.offsetLeft - row.offsetLeft - (row.clientWidth - thumbnail.offsetWidth) / 2;
    at("sample").value = String(picked);
  };

  const pick = (event) => {
    picked = Number(event.target.value);
    show();
  };
  if (slider) slider.addEventListener("input", show);
  for (const one of [...modes, at("filled"), at("outlined")]) one.addEventListener("change", show);
  for (const one of strip) one.addEventListener("change", pick);
  at("sample").addEventListener("change", pick);

  document.querySelector("main").classList.add("scripted");
  viewer.hidden = false;
  show();
})();
