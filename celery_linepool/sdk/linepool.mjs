// For `import`: the same module, and not a second copy of its state.
export * from './linepool.cjs';
export { default } from './linepool.cjs';
