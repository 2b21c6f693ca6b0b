// The Sparkplug B codec of the Eclipse Tahu project, as a filter: "decode HEX" is answered by JSON, "encode JSON" by HEX.
"use strict";
const path = require("path");
const readline = require("readline");
const codec = require(path.join(process.cwd(), "node_modules", "sparkplug-payload")).get("spBv1.0");

console.log("ready");
readline.createInterface({ input: process.stdin }).on("line", (line) => {
    const space = line.indexOf(" ");
    const rest = line.slice(space + 1);
    if (line.startsWith("decode")) {
        const payload = codec.decodePayload(Buffer.from(rest, "hex"));
        console.log(JSON.stringify(payload, (_key, value) => (typeof value === "bigint" ? Number(value) : value)));
    } else {
        console.log(Buffer.from(codec.encodePayload(JSON.parse(rest))).toString("hex"));
    }
});
