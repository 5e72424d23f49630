// What the reader has chosen in Airflow: theme, language, time zone. Airflow keeps them in its local storage; the server
// learns of language and zone by cookies. Without this script, or outside Airflow, the browser's own settings hold.
(() => {
  "use strict";
  const root = document.documentElement;
  const stored = (key) => {
    try {
      return window.localStorage.getItem(key);
    } catch {
      return null;
    }
  };

  const showTheme = () => {
    const theme = (stored("theme") ?? "").replaceAll('"', "");
    if (theme === "light" || theme === "dark") {
      root.dataset.theme = theme;
    } else {
      delete root.dataset.theme;
    }
  };

  const cookie = (name, value, path) => {
    document.cookie = `${name}=${encodeURIComponent(value)}; path=${path || "/"}; samesite=lax; max-age=31536000`;
    return document.cookie.includes(`${name}=`);
  };

  // Tells the server of another language or zone, and asks for the page once more if that changes it.
  const showChoices = () => {
    const { root: path, languages, zone: shownZone } = document.body.dataset;
    const known = languages.split(" ");
    const chosen = (stored("i18nextLng") ?? "").split("-")[0].toLowerCase();
    // Of a language that the pages do not speak, they speak the first of theirs, and not the one chosen before.
    const language = chosen && !known.includes(chosen) ? known[0] : chosen;
    let zone = (stored("timezone") ?? "").replaceAll('"', "");
    if (zone === "local") {
      zone = Intl.DateTimeFormat().resolvedOptions().timeZone;
    }
    let changed = false;
    if (language && language !== root.lang) {
      changed = cookie("medflex_language", language, path) || changed;
    }
    if (/^[A-Za-z0-9_+\/-]+$/.test(zone) && zone !== shownZone) {
      changed = cookie("medflex_zone", zone, path) || changed;
    }
    const tried = `${language} ${zone}`;
    if (changed && window.sessionStorage.getItem("medflex_tried") !== tried) {
      window.sessionStorage.setItem("medflex_tried", tried);
      window.location.reload();
    } else if (!changed) {
      window.sessionStorage.removeItem("medflex_tried");
    }
  };

  showTheme();
  window.addEventListener("storage", () => {
    showTheme();
    showChoices();
  });

  document.addEventListener("DOMContentLoaded", () => {
    showChoices();
    const framed = window.parent !== window;
    root.classList.toggle("framed", framed);
    // Airflow's frame lets no link of ours lead out of it; one in Airflow's own document may.
    document.addEventListener("click", (event) => {
      const link = event.target instanceof Element ? event.target.closest("a[data-airflow]") : null;
      if (!link || !framed || event.defaultPrevented || event.ctrlKey || event.metaKey || event.shiftKey) {
        return;
      }
      try {
        const outer = window.parent.document.createElement("a");
        outer.href = link.href;
        window.parent.document.body.append(outer);
        event.preventDefault();
        outer.click();
        outer.remove();
      } catch {
        // Another site's frame: the link stays what it is.
      }
    });
  });
})();
