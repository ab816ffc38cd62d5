// The npm SDKs against a server: `node sdk_node.mjs http://127.0.0.1:8080`, with openai, @anthropic-ai/sdk, ai,
// @ai-sdk/openai-compatible and zod installed beside it. One line for each thing that was tried.
import assert from "node:assert";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";
import path from "node:path";

const address = process.argv[2].replace(/\/$/, "");
const key = process.argv[3] ?? "none";
const require = createRequire(path.join(process.cwd(), "x.js"));
const load = async (name) => import(pathToFileURL(require.resolve(name)));
const version = (name) => {
  let folder = path.dirname(require.resolve(name));
  for (;; folder = path.dirname(folder)) {
    try {
      const found = require(path.join(folder, "package.json"));
      if (found.name === name) return found.version;
    } catch {}
  }
};

const COUNTED = "1 2 3 4 5 6 7";
const count = [{ role: "user", content: "Count to 7." }];
const weather = [{ role: "user", content: "What is the weather in Paris?" }];
const schema = { type: "object", properties: { location: { type: "string" } }, required: ["location"], additionalProperties: false };
const described = { name: "get_weather", description: "Tell the weather" };

const openai = async () => new (await load("openai")).default({ baseURL: `${address}/v1`, apiKey: key, maxRetries: 0 });
const anthropic = async () => new (await load("@anthropic-ai/sdk")).default({ baseURL: address, apiKey: key, maxRetries: 0 });
const provider = async () => (await load("@ai-sdk/openai-compatible")).createOpenAICompatible({ name: "local", baseURL: `${address}/v1`, apiKey: key });

const tried = {
  "openai: chat": async () => {
    const found = await (await openai()).chat.completions.create({ model: "x", messages: count, temperature: 0 });
    assert.equal(found.choices[0].message.content, COUNTED);
  },
  "openai: chat stream": async () => {
    let text = "", usage;
    const options = { stream: true, stream_options: { include_usage: true } };
    for await (const chunk of await (await openai()).chat.completions.create({ model: "x", messages: count, temperature: 0, ...options })) {
      text += chunk.choices[0]?.delta.content ?? "";
      usage = chunk.usage ?? usage;
    }
    assert.equal(text, COUNTED);
    assert.ok(usage.total_tokens);
  },
  "openai: runTools": async () => {
    const places = [];
    const tool = { type: "function", function: { ...described, parameters: schema, parse: JSON.parse, function: (given) => { places.push(given.location); return "sunny"; } } };
    const runner = (await openai()).chat.completions.runTools({ model: "x", messages: weather, tools: [tool], temperature: 0, stream: true }, { maxChatCompletions: 3 });
    await runner.done();
    assert.ok(places.length);
  },
  "openai: responses stream": async () => {
    const stream = (await openai()).responses.stream({ model: "x", input: weather, tools: [{ type: "function", ...described, parameters: schema, strict: true }], temperature: 0 });
    const final = await stream.finalResponse();
    assert.equal(final.output.at(-1).type, "function_call");
  },
  "openai: abort": async () => {
    const controller = new AbortController();
    const stream = await (await openai()).chat.completions.create({ model: "x", messages: count, stream: true }, { signal: controller.signal });
    for await (const _ of stream) controller.abort();
  },
  "@anthropic-ai/sdk: messages stream, thinking": async () => {
    const stream = (await anthropic()).messages.stream({ model: "x", max_tokens: 2000, messages: count, temperature: 0, thinking: { type: "enabled", budget_tokens: 1024 } });
    const final = await stream.finalMessage();
    assert.deepEqual(final.content.map((block) => block.type), ["thinking", "text"]);
    assert.equal(final.content[1].text, COUNTED);
  },
  "@anthropic-ai/sdk: tools": async () => {
    const client = await anthropic();
    const tools = [{ ...described, input_schema: schema }];
    const final = await client.messages.stream({ model: "x", max_tokens: 200, messages: weather, tools, temperature: 0 }).finalMessage();
    assert.equal(final.stop_reason, "tool_use");
    const result = { type: "tool_result", tool_use_id: final.content.at(-1).id, content: "sunny" };
    const turn = [...weather, { role: "assistant", content: final.content }, { role: "user", content: [result] }];
    assert.ok((await client.messages.create({ model: "x", max_tokens: 50, messages: turn, tools })).content.length);
    assert.ok((await client.messages.countTokens({ model: "x", messages: weather, tools })).input_tokens);
  },
  "@ai-sdk/openai-compatible: generateText": async () => {
    const { generateText } = await load("ai");
    const found = await generateText({ model: (await provider())("x"), prompt: "Count to 7.", temperature: 0, maxRetries: 0 });
    assert.equal(found.text, COUNTED);
    assert.ok(found.reasoningText);
  },
  "@ai-sdk/openai-compatible: streamText with a tool": async () => {
    const { streamText, tool, jsonSchema, stepCountIs } = await load("ai");
    const places = [];
    const execute = async (given) => { places.push(given.location); return "sunny"; };
    const tools = { get_weather: tool({ description: "Tell the weather", inputSchema: jsonSchema(schema), execute }) };
    const found = streamText({ model: (await provider())("x"), messages: weather, tools, temperature: 0, maxRetries: 0, stopWhen: stepCountIs(2) });
    const kinds = new Set();
    for await (const part of found.fullStream) kinds.add(part.type);
    assert.ok(places.length && kinds.has("tool-call") && kinds.has("tool-result") && !kinds.has("error"));
  },
  "@ai-sdk/openai-compatible: generateObject": async () => {
    const { generateObject, jsonSchema } = await load("ai");
    const model = (await load("@ai-sdk/openai-compatible")).createOpenAICompatible({ name: "local", baseURL: `${address}/v1`, apiKey: key, supportsStructuredOutputs: true })("x");
    const found = await generateObject({ model, schema: jsonSchema({ ...schema, properties: { location: { type: "string", maxLength: 20 } } }), prompt: "What is the weather in Paris?", temperature: 0, maxRetries: 0 });
    assert.ok("location" in found.object);
  },
};

let failed = 0;
for (const [name, attempt] of Object.entries(tried)) {
  const [packageName, what] = name.split(": ");
  let told = "ran";
  try {
    await attempt();
  } catch (error) {
    failed += 1;
    told = `FAILED: ${error}`;
  }
  console.log(`${packageName} ${version(packageName)}: ${what}: ${told}`);
}
process.exit(failed);
