// One unary call of grpc-js with a key and a service config, and nothing else that would retry.
// node foreign.cjs ADDRESS PATH KEY SERVICE_CONFIG REQUEST(hex) [TIMEOUT(ms)]; prints what came of it as JSON.
const grpc = require("@grpc/grpc-js");

const [address, path, key, config, request, timeout = "60000"] = process.argv.slice(2);
const client = new grpc.Client(address, grpc.credentials.createInsecure(), {"grpc.service_config": config});
const metadata = new grpc.Metadata();
metadata.set("idempotency-key", key);
const same = (bytes) => bytes;
const found = {message: ""};
const call = client.makeUnaryRequest(
  path, same, same, Buffer.from(request, "hex"), metadata, {deadline: Date.now() + Number(timeout)},
  (error, response) => { if (response) found.message = response.toString("hex"); },
);
call.on("status", (status) => {
  const trailing = status.metadata.getMap();
  console.log(JSON.stringify({...found, code: status.code, details: status.details, replayed: trailing["idempotency-replayed"]}));
  client.close();
});
