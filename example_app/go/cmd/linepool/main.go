// Serves the tasks of the shop to a Celery worker.
package main

import (
	"context"
	"errors"
	"log"
	"os"

	"shop"
	"shop/internal/linepool"
)

// Booted once, for all tasks: what they share has to be safe for many goroutines.
type tasks struct {
	invoices *shop.Invoices
	rates    shop.Rates
}

func main() {
	invoices, err := shop.Open(os.Getenv("DATABASE"))
	if err != nil {
		log.Fatal(err)
	}
	tasks := tasks{invoices, shop.Rates{URL: os.Getenv("RATES_URL")}}
	linepool.Handle("invoices.create", tasks.create)
	linepool.Handle("invoices.find", tasks.find)
	linepool.Handle("invoices.charge", tasks.charge)
	linepool.Handle("invoices.import", tasks.importFile)
	linepool.Handle("invoices.collect", tasks.collect)
	linepool.Handle("rates.fetch", tasks.rate)
	linepool.Handle("rates.below", tasks.below)
	linepool.Run(64)
}

func (t tasks) create(_ context.Context, task *linepool.Task) (any, error) {
	var invoice shop.Invoice
	if err := task.Args(&invoice); err != nil {
		return nil, err
	}
	return t.invoices.Create(invoice)
}

func (t tasks) find(_ context.Context, task *linepool.Task) (any, error) {
	var number string
	if err := task.Args(&number); err != nil {
		return nil, err
	}
	return t.invoices.Find(number)
}

// A task that is delivered twice charges once: its id is the key.
func (t tasks) charge(_ context.Context, task *linepool.Task) (any, error) {
	var number string
	if err := task.Args(&number); err != nil {
		return nil, err
	}
	return t.invoices.Charge(number, task.ID)
}

func (t tasks) importFile(ctx context.Context, task *linepool.Task) (any, error) {
	var path string
	if err := task.Args(&path); err != nil {
		return nil, err
	}
	return t.invoices.Import(ctx, path, func(done int) error {
		return task.Progress(map[string]int{"done": done})
	})
}

// Sends a task for each; the caller gets their ids and may wait for them.
func (t tasks) collect(_ context.Context, task *linepool.Task) (any, error) {
	numbers, err := t.invoices.Unpaid()
	ids := []string{}
	for _, number := range numbers {
		id, err := task.Publish(linepool.Message{Task: "invoices.charge", Args: []any{number}})
		if err != nil {
			return nil, err
		}
		ids = append(ids, id)
	}
	return ids, err
}

func (t tasks) rate(ctx context.Context, task *linepool.Task) (any, error) {
	var currency string
	if err := task.Args(&currency); err != nil {
		return nil, err
	}
	rate, err := t.rates.Fetch(ctx, currency)
	var limited *shop.RateLimited
	if errors.As(err, &limited) {
		return nil, linepool.Throttle(limited.After) // no retry is used up
	}
	return rate, err
}

// It ends when it is cancelled: all that waits in it has the context.
func (t tasks) below(ctx context.Context, task *linepool.Task) (any, error) {
	var currency string
	var limit float64
	if err := task.Args(&currency, &limit); err != nil {
		return nil, err
	}
	return t.rates.Below(ctx, currency, limit)
}
