// Runs before the first paint, so that a dark page never flashes white. The only classic script of the page.
(function () {
  let theme = "auto";
  try {
    theme = localStorage.getItem("fledge.theme") || "auto";
  } catch {
    // storage is closed to this page: follow the system
  }
  document.documentElement.dataset.theme = theme;
})();
