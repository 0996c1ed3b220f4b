// A client of another make: calls every kind of method twice with one key, and prints all that came back.
//
// node foreign.cjs ADDRESS PROTO KEY, with NODE_PATH where grpc-js is.

const grpc = require("@grpc/grpc-js");
const loader = require("@grpc/proto-loader");

const [address, proto, key] = process.argv.slice(2);
const { LedgerService } = grpc.loadPackageDefinition(loader.loadSync(proto)).tests.v1;
const client = new LedgerService(address, grpc.credentials.createInsecure());
const parts = [0, 1, 2].map((part) => ({ order: "from afar", amount: 1299, part }));

function call(kind) {
  return new Promise((resolve) => {
    const seen = { responses: [], initial: {}, trailing: {} };
    const metadata = new grpc.Metadata();
    metadata.set("idempotency-key", key);
    const options = { deadline: Date.now() + 60000 };
    const done = (error, response) => response && seen.responses.push(response.entry);

    let rpc;
    if (kind === "Unary") rpc = client.Unary(parts[0], metadata, options, done);
    if (kind === "ServerStream") rpc = client.ServerStream(parts[0], metadata, options);
    if (kind === "ClientStream") rpc = client.ClientStream(metadata, options, done);
    if (kind === "Bidi") rpc = client.Bidi(metadata, options);

    rpc.on("metadata", (received) => (seen.initial = received.getMap()));
    rpc.on("status", (status) => {
      seen.code = status.code;
      seen.trailing = status.metadata.getMap();
      setImmediate(() => resolve(seen));
    });
    rpc.on("error", () => {});
    if (kind === "ServerStream") rpc.on("data", (response) => seen.responses.push(response.entry + response.part));
    if (kind === "ClientStream") {
      parts.forEach((part) => rpc.write(part));
      rpc.end();
    }
    if (kind === "Bidi") {
      const left = [...parts];
      const next = () => (left.length ? rpc.write(left.shift()) : rpc.end());
      rpc.on("data", (response) => {
        seen.responses.push(response.entry + response.part);
        next();
      });
      next();
    }
  });
}

(async () => {
  const answers = {};
  for (const kind of ["Unary", "ServerStream", "ClientStream", "Bidi"]) {
    answers[kind] = [await call(kind), await call(kind)];
  }
  console.log(JSON.stringify(answers));
  client.close();
})();
