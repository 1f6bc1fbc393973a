// Asks what the test names through OpenAI's own client for Node and prints what came as one line of JSON.
// Usage: node ask.cjs BASE_URL MODEL PROMPT (chat | completion | response | tools | embedding)
"use strict";

const OpenAI = require("openai");

async function main([baseURL, model, prompt, kind]) {
  const client = new OpenAI({ baseURL, apiKey: "any", maxRetries: 0, timeout: 60_000 });
  const messages = [{ role: "user", content: prompt }];
  let text = "";
  let tokens = 0;
  if (kind === "embedding") {
    const answer = await client.embeddings.create({ model, input: prompt });
    return { dimensions: answer.data[0].embedding.length, tokens: answer.usage.prompt_tokens };
  }
  if (kind === "response") {
    const stream = await client.responses.create({ model, input: prompt, max_output_tokens: 16, stream: true });
    for await (const event of stream) {
      if (event.type === "response.output_text.delta") text += event.delta;
      if (event.type === "response.completed") tokens = event.response.usage.output_tokens;
    }
    return { text, tokens };
  }
  if (kind === "completion") {
    const stream = await client.completions.create({ model, prompt, max_tokens: 16, stream: true });
    for await (const chunk of stream) text += chunk.choices[0]?.text ?? "";
    return { text, tokens };
  }
  const tools = [{ type: "function", function: { name: "weather", parameters: { type: "object", properties: {} } } }];
  const stream = await client.chat.completions.create({
    model,
    messages,
    max_tokens: 16,
    stream: true,
    stream_options: { include_usage: true },
    ...(kind === "tools" ? { tools, tool_choice: "auto" } : {}),
  });
  for await (const chunk of stream) {
    text += chunk.choices[0]?.delta?.content ?? "";
    tokens = chunk.usage?.completion_tokens ?? tokens;
  }
  return { text, tokens };
}

main(process.argv.slice(2)).then(
  (value) => console.log(JSON.stringify(value)),
  (error) => console.log(JSON.stringify({ error: error.message, status: error.status ?? null })),
);
