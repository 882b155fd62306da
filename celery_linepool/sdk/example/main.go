package main

import (
	"context"

	"worker/linepool" // the helper, in a folder of that name
)

func add(_ context.Context, task *linepool.Task) (any, error) {
	var a, b float64
	err := task.Args(&a, &b)
	return a + b, err
}

func main() {
	linepool.Handle("example.add", add)
	linepool.Run(64)
}
