package shop

import (
	"context"
	"encoding/csv"
	"errors"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path"
	"strconv"
	"strings"
)

// Invoice is what somebody has to pay. Its number is its name.
type Invoice struct {
	Number       string `json:"number"`
	Email        string `json:"email"`
	AmountCents  int    `json:"amount_cents"`
	ChargedCents int    `json:"charged_cents"`
}

// Charged says what was charged.
type Charged struct {
	Invoice     string `json:"invoice"`
	AmountCents int    `json:"amount_cents"`
}

// InvalidInvoice is the error of an invoice that cannot be.
type InvalidInvoice struct{ why string }

func (e *InvalidInvoice) Error() string { return e.why }

// Invoices are those in a store.
type Invoices struct{ store Store }

// Open has the invoices of a folder, shop.db if that is "". It is made if it is not there.
func Open(folder string) (*Invoices, error) {
	if folder == "" {
		folder = "shop.db"
	}
	return &Invoices{Store{folder}}, os.MkdirAll(folder, 0o777)
}

// Create adds one and returns its number.
func (i *Invoices) Create(invoice Invoice) (string, error) {
	if !strings.Contains(invoice.Email, "@") {
		return "", &InvalidInvoice{invoice.Email + " is no address"}
	}
	invoice.ChargedCents = 0
	return invoice.Number, i.store.add(file("invoices", invoice.Number), invoice)
}

// Find has one, with what was charged for it so far.
func (i *Invoices) Find(number string) (Invoice, error) {
	var invoice Invoice
	if err := i.store.read(file("invoices", number), &invoice); err != nil {
		return invoice, err
	}
	folder := file("charges", number)
	charges, err := i.store.list(folder)
	for _, name := range charges {
		var cents int
		if err := i.store.read(path.Join(folder, name), &cents); err != nil {
			return invoice, err
		}
		invoice.ChargedCents += cents
	}
	return invoice, err
}

// Unpaid has the numbers of those that nothing was charged for.
func (i *Invoices) Unpaid() ([]string, error) {
	unpaid := []string{}
	names, err := i.store.list("invoices")
	for _, name := range names {
		number, err := url.PathUnescape(name)
		if err != nil {
			return nil, err
		}
		if charges, err := i.store.list(file("charges", number)); err != nil {
			return nil, err
		} else if len(charges) == 0 {
			unpaid = append(unpaid, number)
		}
	}
	return unpaid, err
}

// Charge charges it once for a key, however often it is called.
func (i *Invoices) Charge(number, key string) (Charged, error) {
	invoice, err := i.Find(number)
	if err != nil {
		return Charged{}, err
	}
	err = i.store.add(file("charges", number, key), invoice.AmountCents)
	if errors.Is(err, fs.ErrExist) {
		err = nil
	}
	return Charged{number, invoice.AmountCents}, err
}

// Import adds the invoices of a CSV file, and reports after each how many there are by now.
func (i *Invoices) Import(ctx context.Context, name string, report func(done int) error) (int, error) {
	file, err := os.Open(name)
	if err != nil {
		return 0, err
	}
	defer file.Close()
	rows := csv.NewReader(file)
	if _, err := rows.Read(); err != nil { // the names of the columns
		return 0, err
	}
	for done := 0; ; {
		row, err := rows.Read()
		if errors.Is(err, io.EOF) {
			return done, nil
		} else if err != nil {
			return done, err
		}
		cents, err := strconv.Atoi(row[2])
		if err != nil {
			return done, err
		}
		if _, err := i.Create(Invoice{Number: row[0], Email: row[1], AmountCents: cents}); err != nil {
			return done, err
		}
		done++
		if err := report(done); err != nil {
			return done, err
		}
		if ctx.Err() != nil {
			return done, ctx.Err()
		}
	}
}

// file is a name that holds whatever numbers and keys hold.
func file(parts ...string) string {
	name := ""
	for _, part := range parts {
		name = path.Join(name, url.PathEscape(part))
	}
	return name
}
