"use strict";
for (const viewer of document.querySelectorAll(".case[data-viewer]")) {
  const slices = JSON.parse(document.getElementById(viewer.dataset.viewer).textContent);
  const part = (name) => viewer.querySelector("." + name);
  const slider = part("slider");
  const set = (name, source, wanted) => {
    const picture = part(name);
    if (!picture) return;
    picture.hidden = !source || !wanted;
    if (source) picture.src = source;
  };
  const checked = (name) => { const box = part(name); return !box || box.checked; };
  const show = () => {
    const slice = slices[Number(slider.value)];
    part("scan").src = slice.image;
    const heat = part("heat") !== null && checked("show-heat");
    set("heat", slice.confidence, heat);
    if (part("scale")) part("scale").hidden = !heat;
    set("fill", slice.prediction, checked("show-fill") && !heat); // colors of labels and of doubt must not mix
    set("lines", slice.truth, checked("show-lines"));
    part("number").textContent = slice.number;
    part("note").textContent = slice.note;
  };
  viewer.addEventListener("input", show);
  viewer.querySelector(".stack").addEventListener("wheel", (event) => {
    if (!event.shiftKey) return;
    event.preventDefault();
    slider.value = Number(slider.value) + Math.sign(event.deltaY || event.deltaX);
    show();
  }, { passive: false });
  show();
}
