// steps.mjs MODULE WEIGHTS X T B WIDTH ITEMSIZE STATE...: writes each y, then the states.
import { network, numbers } from './network.mjs';

const [T, B, width, size, ...counts] = numbers(5);
const { functions, place, write, checked, weights, x } = await network();
const prepared = place(functions.rnn_prepared_bytes());
checked(functions.rnn_prepare(weights, prepared));
const states = counts.map((count) => place(count * size)); // fresh memory is 0
const y = place(B * width * size);
const scratch = place(functions.rnn_step_scratch_bytes(BigInt(B)));
for (let t = 0; t < T; t++) {
  checked(functions.rnn_step(BigInt(B), prepared, x + t * B * 19 * size, ...states, y, scratch));
  write(y, B * width * size);
}
states.forEach((at, i) => write(at, counts[i] * size));
