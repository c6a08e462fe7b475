// Node's fetch and its older http module post a photo. Prints one line for each way: its name, a tab, the response.

import { createReadStream, openAsBlob } from "node:fs";
import { readFile } from "node:fs/promises";
import http from "node:http";
import { text } from "node:stream/consumers";

const [url, path] = process.argv.slice(2);

async function post(way, options) {
  console.log(`${way}\t${await (await fetch(url, { method: "POST", ...options })).text()}`);
}

const photo = await openAsBlob(path);
await post("fetch, Buffer", { body: await readFile(path) });
await post("fetch, Blob", { body: photo });
await post("fetch, stream (chunked)", { body: createReadStream(path), duplex: "half" });
const form = new FormData();
form.append("file", photo, "photo.jpg");
await post("fetch, FormData", { body: form });
form.append("note", "from a form");
await post("fetch, FormData with a field", { body: form });
const answer = await new Promise((resolve, reject) => {
  const request = http.request(url, { method: "POST" }, resolve).on("error", reject);
  createReadStream(path).pipe(request);
});
console.log(`http.request (chunked)\t${await text(answer)}`);
process.exit(0);
