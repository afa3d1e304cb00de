// SPDX-License-Identifier: Apache-2.0
// A worker thread and a process of Node.js.
const { Worker, isMainThread, parentPort } = require("worker_threads");
const { execFileSync } = require("child_process");

if (isMainThread) {
  const worker = new Worker(__filename);
  worker.on("message", (sum) => {
    console.log("worker", sum, execFileSync("echo", ["from a process"]).toString().trim());
  });
} else {
  parentPort.postMessage(Array.from({ length: 1000 }, (_, i) => i).reduce((a, b) => a + b, 0));
}
