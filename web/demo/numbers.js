// Times in numbers and words.

/** The value below which a part of some numbers lies. */
export const quantile = (numbers, part) => [...numbers].sort((a, b) => a - b)[Math.floor((numbers.length - 1) * part)];
export const median = (numbers) => quantile(numbers, 0.5);

export const milliseconds = (ms) => (ms >= 100 ? Math.round(ms).toLocaleString() : ms.toPrecision(3));

/** What takes less is repeated: the clock of a page goes in steps of up to a millisecond. */
const LEAST_MS = 5;

/** How often to repeat what took so long. */
export const repeatsOf = (ms) => Math.ceil(LEAST_MS / Math.max(0.1, ms));
