// An OPC UA server for the tests: node-opcua, SignAndEncrypt only, one user, the signals of the handshake as nodes.
// Arguments: port, folder of its keys and lists, certificate to trust ("-" for none).
// A line on stdin is a command: "get FIELD", "set FIELD VALUE", "refuse FIELD" (writes to it fail), "accept FIELD". Answers are lines.
"use strict";
// Standard output is for answers alone: the library writes its warnings there too.
console.log = console.info = console.warn = console.debug = console.error;
const say = (text) => process.stdout.write(`${text}\n`);

const path = require("path");
const fs = require("fs");
const readline = require("readline");
const modules = path.join(process.cwd(), "node_modules");
const opcua = require(path.join(modules, "node-opcua-server"));
const { DataType, Variant } = require(path.join(modules, "node-opcua-variant"));
const { StatusCodes } = require(path.join(modules, "node-opcua-status-code"));
const { OPCUACertificateManager } = require(path.join(modules, "node-opcua-certificate-manager"));
const { MessageSecurityMode, SecurityPolicy } = require(path.join(modules, "node-opcua-secure-channel"));

const [port, folder, trusted] = process.argv.slice(2);
const types = {
    "Out.ready": "Boolean", "Out.heartbeat": "UInt16", "Out.fault": "UInt16", "Out.trigger": "UInt16",
    "Out.part": "UInt32", "Out.result": "UInt16", "Out.eject": "Boolean", "Out.valid": "UInt16",
    "In.ack": "UInt16", "In.parts": "UInt16", "In.part": "UInt32", "In.encoder": "Int32", "In.run": "Boolean",
};
const values = {};
const refused = new Set();
for (const [name, type] of Object.entries(types)) values[name] = type === "Boolean" ? false : 0;

async function main() {
    const certificates = new OPCUACertificateManager({ rootFolder: folder, automaticallyAcceptUnknownCertificate: false });
    await certificates.initialize();
    if (trusted !== "-") await certificates.trustCertificate(fs.readFileSync(trusted));
    const server = new opcua.OPCUAServer({
        port: Number(port),
        hostname: "127.0.0.1",
        securityModes: [MessageSecurityMode.SignAndEncrypt],
        securityPolicies: [SecurityPolicy.Basic256Sha256],
        serverCertificateManager: certificates,
        allowAnonymous: false,
        userManager: { isValidUser: (user, password) => user === "edge" && password === "let me in" },
    });
    await server.initialize();
    const space = server.engine.addressSpace;
    const namespace = space.registerNamespace("urn:edge-inspect:test");
    const device = namespace.addObject({ organizedBy: space.rootFolder.objects, browseName: "EdgeInspect" });
    for (const [name, type] of Object.entries(types)) {
        namespace.addVariable({
            componentOf: device,
            browseName: name,
            nodeId: `s=EdgeInspect.${name}`,
            dataType: type,
            minimumSamplingInterval: 100,
            value: {
                get: () => new Variant({ dataType: DataType[type], value: values[name] }),
                set: (variant) => {
                    if (refused.has(name)) return StatusCodes.BadOutOfRange;
                    values[name] = variant.value;
                    return StatusCodes.Good;
                },
            },
        });
    }
    await server.start();
    say(`ready ${namespace.index} ${server.certificateFile}`);
    readline.createInterface({ input: process.stdin }).on("line", (line) => {
        const [command, name, value] = line.split(" ");
        if (command === "set") values[name] = JSON.parse(value);
        if (command === "refuse") refused.add(name);
        if (command === "accept") refused.delete(name);
        say(JSON.stringify(values[name]));
    });
}
main().catch((error) => { console.error(error); process.exit(1); });
