// fetch, XMLHttpRequest and a form element in a browser post a photo; returns the ways, each with its response.
async ([url, encoded]) => {
  const bytes = Uint8Array.from(atob(encoded), (character) => character.charCodeAt(0));
  const photo = new File([bytes], "Foto é.jpg", { type: "image/jpeg" });
  const form = new FormData();
  form.append("file", photo);
  const withField = new FormData();
  withField.append("note", "from a page");
  withField.append("file", photo);
  const viaFetch = async (body) => (await fetch(url, { method: "POST", body })).text();
  const viaXhr = (body) =>
    new Promise((resolve, reject) => {
      const request = new XMLHttpRequest();
      request.open("POST", url);
      request.onload = () => resolve(request.responseText);
      request.onerror = reject;
      request.send(body);
    });
  return {
    "fetch, File": await viaFetch(photo),
    "fetch, bytes": await viaFetch(bytes),
    "fetch, FormData": await viaFetch(form),
    "fetch, FormData with a field": await viaFetch(withField),
    "XMLHttpRequest, File": await viaXhr(photo),
    "XMLHttpRequest, FormData": await viaXhr(form),
  };
};
