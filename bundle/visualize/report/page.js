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
  const heats = { heat: "confidence", like: "similarity" };
  const show = () => {
    const slice = slices[Number(slider.value)];
    part("scan").src = slice.image;
    let hot = false;
    for (const [name, map] of Object.entries(heats)) {
      if (!part(name)) continue;
      const wanted = checked("show-" + name);
      set(name, slice[map], wanted);
      part(name + "-scale").hidden = !wanted;
      hot = hot || wanted;
    }
    set("fill", slice.prediction, checked("show-fill") && !hot); // colors of labels and of heats must not mix
    set("lines", slice.truth, checked("show-lines"));
    part("number").textContent = slice.number;
    part("note").textContent = slice.note;
  };
  viewer.addEventListener("input", (event) => {
    const chosen = Object.keys(heats).find((name) => event.target === part("show-" + name));
    if (chosen && event.target.checked) { // one heat at a time
      for (const name of Object.keys(heats)) if (name !== chosen && part(name)) part("show-" + name).checked = false;
    }
    show();
  });
  viewer.querySelector(".stack").addEventListener("wheel", (event) => {
    if (!event.shiftKey) return;
    event.preventDefault();
    slider.value = Number(slider.value) + Math.sign(event.deltaY || event.deltaX);
    show();
  }, { passive: false });
  show();
}
