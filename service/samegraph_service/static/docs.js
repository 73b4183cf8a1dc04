// Start Swagger UI on this page. In a file of its own, because the page's Content-Security-Policy allows no inline script.
"use strict";

(() => {
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const follow = () => document.documentElement.classList.toggle("dark-mode", dark.matches);
  follow();
  dark.addEventListener("change", follow);

  // Swagger UI offers a file for each item of a list of files, but complains that it has no component of this name.
  const listsOfFiles = ({ React }) => ({
    components: { JsonSchema_string_binary: (props) => React.createElement(props.getComponent("JsonSchema_string"), props) },
  });

  const place = document.getElementById("swagger-ui");
  window.ui = SwaggerUIBundle({
    url: new URL(place.dataset.openapi, document.baseURI).href,
    domNode: place,
    presets: [SwaggerUIBundle.presets.apis],
    plugins: [listsOfFiles],
    layout: "BaseLayout",
    deepLinking: true,
    displayRequestDuration: true,
    docExpansion: "list",
    defaultModelsExpandDepth: 0,
    defaultModelExpandDepth: 3,
    defaultModelRendering: "example",
    queryConfigEnabled: false, // the address bar must not be able to load another document
    validatorUrl: null, // the badge would send this document to a public site
  });
})();
