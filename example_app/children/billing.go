package main

import (
	"fmt"
	"math/big"
	"os"
	"strconv"
	"strings"
)

// invoice is one row of ../data/invoices.csv. Money is counted in cents.
type invoice struct {
	Invoice, Customer, Country, IBAN, Currency string

	Quantity    int64
	UnitCents   int64 `json:"unit_cents"`
	VATPercent  int64 `json:"vat_percent"`
	Instalments int64
}

type charged struct {
	Invoice              string `json:"invoice"`
	Customer             string `json:"customer"`
	TaxCents             int64  `json:"tax_cents"`
	TotalCents           int64  `json:"total_cents"`
	Total                string `json:"total"`
	FirstInstalmentCents int64  `json:"first_instalment_cents"`
	IBANOk               bool   `json:"iban_ok"`
	Risk                 int    `json:"risk"`
	PID                  int    `json:"pid"`
}

func charge(row invoice) charged {
	net := row.Quantity * row.UnitCents
	tax := (net*row.VATPercent + 50) / 100
	total := net + tax
	first := total - total/row.Instalments*(row.Instalments-1)
	ok, risk := ibanOk(row.IBAN), 0
	if !ok {
		risk += 60
	}
	if !strings.HasPrefix(row.IBAN, row.Country) {
		risk += 20
	}
	if total >= 1_000_000 {
		risk += 15
	}
	return charged{row.Invoice, row.Customer, tax, total, formatMoney(total, row.Currency),
		first, ok, risk, os.Getpid()}
}

func ibanOk(iban string) bool {
	var digits strings.Builder
	for _, char := range iban[4:] + iban[:4] {
		value, err := strconv.ParseInt(string(char), 36, 64)
		if err != nil {
			return false
		}
		fmt.Fprint(&digits, value)
	}
	number, _ := new(big.Int).SetString(digits.String(), 10)
	return number.Mod(number, big.NewInt(97)).Int64() == 1
}

func formatMoney(cents int64, currency string) string {
	whole := strconv.FormatInt(cents/100, 10)
	for i := len(whole) - 3; i > 0; i -= 3 {
		whole = whole[:i] + "," + whole[i:]
	}
	return fmt.Sprintf("%s.%02d %s", whole, cents%100, currency)
}
