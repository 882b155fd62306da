// Shows the shop's invoices to its users.
package main

import (
	"encoding/json"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"strings"

	"shop"
)

func main() {
	invoices, err := shop.Open(os.Getenv("DATABASE"))
	if err != nil {
		log.Fatal(err)
	}
	http.HandleFunc("/invoices/", func(w http.ResponseWriter, r *http.Request) {
		invoice, err := invoices.Find(strings.TrimPrefix(r.URL.Path, "/invoices/"))
		if err != nil {
			http.NotFound(w, r)
			return
		}
		_ = json.NewEncoder(w).Encode(invoice)
	})
	listener, err := net.Listen("tcp", "127.0.0.1:"+os.Getenv("PORT"))
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("http://%s\n", listener.Addr())
	log.Fatal(http.Serve(listener, nil))
}
