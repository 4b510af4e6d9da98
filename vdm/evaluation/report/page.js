// Niceties only: the page says everything without them.
(() => {
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  const videos = document.querySelectorAll("video");
  if (still) videos.forEach((video) => { video.removeAttribute("autoplay"); video.pause(); });
  else if ("IntersectionObserver" in window) {
    const seen = new IntersectionObserver((entries) => {
      for (const { target, isIntersecting } of entries) {
        if (isIntersecting) target.play().catch(() => {});
        else target.pause();
      }
    });
    videos.forEach((video) => seen.observe(video));
  }
  for (const command of document.querySelectorAll("pre.command")) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = "copy";
    button.addEventListener("click", () => {
      const chosen = getSelection();
      chosen.selectAllChildren(command.querySelector("code"));
      if (navigator.clipboard) navigator.clipboard.writeText(command.querySelector("code").textContent).catch(() => {});
      button.textContent = "copied";
    });
    command.append(button);
  }
})();
