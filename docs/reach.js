"use strict";
// What scrolls sideways is reached by the keyboard, and the search says what it is.
addEventListener("load", () => {
  document.querySelector(".md-search")?.setAttribute("aria-label", "Search");
  for (const box of document.querySelectorAll(".md-typeset__scrollwrap, .highlight-ipynb, .highlight pre, .highlight code, .jp-OutputArea-output, .jp-OutputArea-output pre, .jp-RenderedHTMLCommon, .md-typeset table")) {
    if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
  }
});
