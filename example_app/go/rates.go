package shop

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"time"
)

// RateLimited is the error of who asks too often.
type RateLimited struct{ After time.Duration }

func (e *RateLimited) Error() string { return "the rate limit is reached" }

// Rates are exchange rates, from a service at an address.
type Rates struct{ URL string }

// Fetch asks for one.
func (r Rates) Fetch(ctx context.Context, currency string) (float64, error) {
	request, err := http.NewRequestWithContext(ctx, "GET", r.URL+"/"+currency, nil)
	if err != nil {
		return 0, err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return 0, err
	}
	defer response.Body.Close()
	switch response.StatusCode {
	case http.StatusOK:
	case http.StatusTooManyRequests:
		seconds, err := strconv.Atoi(response.Header.Get("Retry-After"))
		if err != nil {
			seconds = 60
		}
		return 0, &RateLimited{time.Duration(seconds) * time.Second}
	default:
		return 0, fmt.Errorf("%s for %s", response.Status, currency)
	}
	var found struct{ Rate float64 }
	err = json.NewDecoder(response.Body).Decode(&found)
	return found.Rate, err
}

// Below asks again and again, until it is below the limit or the context ends.
func (r Rates) Below(ctx context.Context, currency string, limit float64) (float64, error) {
	for {
		rate, err := r.Fetch(ctx, currency)
		if err != nil || rate < limit {
			return rate, err
		}
		select {
		case <-ctx.Done():
			return 0, ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
	}
}
