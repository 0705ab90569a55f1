// whole.mjs MODULE WEIGHTS X T B WIDTH ITEMSIZE STATE...: writes y and the last states.
import { network, numbers } from './network.mjs';

const [T, B, width, size, ...states] = numbers(5);
const { functions, place, write, checked, weights, x } = await network();
const y = place(T * B * width * size);
const last = states.map((count) => place(count * size));
const scratch = place(functions.rnn_scratch_bytes(BigInt(B), BigInt(T * B)));
const zeros = states.map(() => 0);
checked(functions.rnn_forward(BigInt(T), BigInt(B), 0, x, ...zeros, weights, y, ...last, scratch));
write(y, T * B * width * size);
last.forEach((at, i) => write(at, states[i] * size));
