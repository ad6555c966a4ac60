// MQTT.js in Chromium: node page.mjs URL VERSION CHROMIUM. Serves a page that does what chat.mjs does, and opens it.
import { readFileSync } from "node:fs";
import { createServer } from "node:http";
import { chromium } from "playwright-core";

const [url, version, executablePath] = process.argv.slice(2);
const library = readFileSync(new URL("node_modules/mqtt/dist/mqtt.min.js", import.meta.url));
const page = `<!doctype html><title>chat</title><script src="/mqtt.js"></script><script>
  window.answers = [];
  const client = mqtt.connect(${JSON.stringify(url)}, {
    protocolVersion: ${Number(version)}, clientId: "page-${version}-" + Math.random(), reconnectPeriod: 0,
  });
  client.on("error", (error) => { window.failure = String(error); });
  client.on("message", (topic, payload) => { window.answers.push(payload.toString()); });
  client.on("connect", async () => {
    await client.subscribeAsync("chat/receive", { qos: 2 });
    for (const qos of [0, 1, 2]) await client.publishAsync("chat/send", String(qos), { qos });
  });
</script>`;

const server = createServer((request, response) => {
  const isLibrary = request.url === "/mqtt.js";
  response.setHeader("Content-Type", isLibrary ? "text/javascript" : "text/html");
  response.end(isLibrary ? library : page);
}).listen(0, "127.0.0.1");
await new Promise((resolve) => server.once("listening", resolve));

const browser = await chromium.launch({
  executablePath,
  args: [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
  ],
});
try {
  const tab = await browser.newPage();
  await tab.goto(`http://127.0.0.1:${server.address().port}/`);
  await tab.waitForFunction(() => window.answers.length === 3 || window.failure, null, { timeout: 60_000 });
  const [answers, failure] = await tab.evaluate(() => [window.answers, window.failure]);
  if (failure) throw new Error(failure);
  console.log(JSON.stringify({ answers: answers.sort() }));
} finally {
  await browser.close();
  server.close();
}
