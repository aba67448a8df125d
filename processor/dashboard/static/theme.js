// Runs before the page is drawn, so that a remembered theme does not flash. Without one, the system's preference holds.
try {
  const remembered = localStorage.getItem("theme");
  if (remembered === "dark" || remembered === "light") document.documentElement.dataset.theme = remembered;
} catch {
  // A browser that keeps nothing.
}
