// MQTT.js in Node: node chat.mjs URL VERSION. Asks on chat/send, prints the answers from chat/receive.
import mqtt from "mqtt";

const [url, version] = process.argv.slice(2);
const protocolVersion = Number(version);
const client = mqtt.connect(url, {
  protocolVersion,
  protocolId: protocolVersion === 3 ? "MQIsdp" : "MQTT",
  clientId: `node-${version}-${process.pid}`,
  reconnectPeriod: 0,
});
const answers = [];

const fail = (error) => {
  console.error(error);
  process.exit(1);
};
setTimeout(() => fail("no answers within 60 s"), 60_000).unref();
client.on("error", fail);
client.on("message", (topic, payload) => {
  answers.push(payload.toString());
  if (answers.length === 3) {
    client.end(false, {}, () => console.log(JSON.stringify({ answers: answers.sort() })));
  }
});
client.on("connect", async () => {
  await client.subscribeAsync("chat/receive", { qos: 2 });
  for (const qos of [0, 1, 2]) {
    await client.publishAsync("chat/send", String(qos), { qos });
  }
});
