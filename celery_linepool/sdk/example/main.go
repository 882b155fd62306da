package main

import (
	"context"
	"log"

	"worker/linepool" // the helper, in a folder of that name
)

func add(_ context.Context, task *linepool.Task) (any, error) {
	var a, b float64
	err := task.Args(&a, &b)
	return a + b, err
}

func main() {
	linepool.Handle("example.add", add)
	if err := linepool.Run(64); err != nil {
		log.Fatal(err)
	}
}
