// A network in WebAssembly: its functions, and memory behind that of the module.
import fs from 'node:fs';

export const numbers = (from) => process.argv.slice(from).map(Number);

export async function network() {
  const [module, ...files] = process.argv.slice(2, 5);
  const { instance } = await WebAssembly.instantiate(fs.readFileSync(module), {});
  const { memory, __heap_base: heap, ...functions } = instance.exports;
  let end = heap.value;
  const place = (size) => {
    const at = (end + 63) & ~63;
    end = at + Number(size);
    const missing = end - memory.buffer.byteLength;
    if (missing > 0) memory.grow(Math.ceil(missing / 65536));
    return at;
  };
  const load = (content) => {
    const at = place(content.length);
    new Uint8Array(memory.buffer).set(content, at);
    return at;
  };
  const [weights, x] = files.map((name) => load(fs.readFileSync(name)));
  const write = (at, size) => fs.writeSync(1, new Uint8Array(memory.buffer, at, size));
  const checked = (status) => { if (status !== 0) throw new Error(`status ${status}`); };
  return { functions, place, write, checked, weights, x };
}
