(() => {
  const study = JSON.parse(document.getElementById("study").textContent);
  const place = `study-${study.id}`;
  const steps = [...document.querySelectorAll(".step")];
  const rater = document.getElementById("rater");
  const trouble = document.getElementById("trouble");
  const state = { rater: "", step: 0, answers: {} };
  let at = 0;

  const say = (text) => { trouble.textContent = text; trouble.hidden = !text; };

  try {
    const kept = JSON.parse(localStorage.getItem(place) || "{}");
    if (kept && typeof kept.answers === "object") Object.assign(state, kept);
    localStorage.setItem(place, JSON.stringify(state));
  } catch (error) {
    say("This browser keeps no answers: do not close the page before you have saved your ratings.");
  }
  const keep = () => { try { localStorage.setItem(place, JSON.stringify(state)); } catch (error) { /* said above */ } };

  const fields = study.items.flatMap((item) => item.places.flatMap((letter) =>
    Object.keys(study.questions).map((question) => [item.name, letter, question])));
  const answer = ([item, letter, question]) => ((state.answers[item] || {})[letter] || {})[question];
  const left = (item) => fields.filter((field) => (!item || field[0] === item) && answer(field) === undefined).length;

  for (const field of fields) {
    const value = answer(field);
    const box = value && document.querySelector(`input[name="${field.join("-")}"][value="${Number(value)}"]`);
    if (box) box.checked = true;
  }
  rater.value = state.rater || "";
  rater.addEventListener("input", () => { state.rater = rater.value.trim(); keep(); });

  document.addEventListener("change", ({ target }) => {
    if (target.type !== "radio") return;
    const [item, letter] = target.name.split("-");
    const question = target.name.slice(item.length + letter.length + 2);
    const own = (state.answers[item] = state.answers[item] || {});
    (own[letter] = own[letter] || {})[question] = Number(target.value);
    keep();
    show(at, false);
  });

  const ratings = () => JSON.stringify({
    study: study.id, rater: state.rater, exported: new Date().toISOString(), missing: left(), answers: state.answers,
  }, null, 1);

  const show = (step, moves = true) => {
    at = Math.max(0, Math.min(steps.length - 1, step));
    state.step = at;
    keep();
    steps.forEach((one, i) => { one.hidden = i !== at; });
    const item = steps[at].dataset.item;
    const done = study.items.filter((one) => !left(one.name)).length;
    document.getElementById("where").textContent =
      (item ? `${at} of ${study.items.length}` + (left(item) ? "" : ", answered") : "") + (at ? ` (${done} done)` : "");
    document.getElementById("back").disabled = at === 0;
    document.getElementById("next").disabled = at === steps.length - 1;
    document.getElementById("missing").textContent =
      left() ? `${left()} answers are missing. You can go back, or save what there is.` : "Everything is answered. Thank you.";
    if (at === steps.length - 1) document.getElementById("copy").value = ratings();
    if (!moves) return;
    scrollTo(0, 0);
    document.querySelectorAll("video").forEach((video) => {
      if (video.closest(".step") === steps[at]) video.play().catch(() => {});
      else video.pause();
    });
  };

  document.getElementById("back").addEventListener("click", () => show(at - 1));
  document.getElementById("next").addEventListener("click", () => {
    if (at === 0 && !state.rater) { say("Please say who you are: ratings without a name are not counted."); rater.focus(); return; }
    say("");
    show(at + 1);
  });
  document.getElementById("save").addEventListener("click", () => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([ratings()], { type: "application/json" }));
    link.download = `ratings-${study.id}-${state.rater.replace(/[^\p{L}\p{N}]+/gu, "_") || "nobody"}.json`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  });
  show(Number.isInteger(state.step) ? state.step : 0);
})();
