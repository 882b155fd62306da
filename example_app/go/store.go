// Package shop is a small shop: its invoices, and what they cost in other currencies.
package shop

import (
	"encoding/json"
	"os"
	"path/filepath"
)

// Store is a folder of small files, for as many processes as like to share it.
type Store struct{ folder string }

// add writes a file whole or not at all; fs.ErrExist if it is there already.
func (s Store) add(name string, value any) error {
	path := filepath.Join(s.folder, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o777); err != nil {
		return err
	}
	text, err := json.Marshal(value)
	if err != nil {
		return err
	}
	draft, err := os.CreateTemp(s.folder, "draft-")
	if err != nil {
		return err
	}
	defer os.Remove(draft.Name())
	if _, err := draft.Write(text); err != nil {
		return err
	}
	if err := draft.Close(); err != nil {
		return err
	}
	return os.Link(draft.Name(), path)
}

func (s Store) read(name string, into any) error {
	text, err := os.ReadFile(filepath.Join(s.folder, name))
	if err != nil {
		return err
	}
	return json.Unmarshal(text, into)
}

// list has the names of a folder's files, in their order; there may be none.
func (s Store) list(folder string) ([]string, error) {
	files, err := os.ReadDir(filepath.Join(s.folder, folder))
	if os.IsNotExist(err) {
		return nil, nil
	}
	var names []string
	for _, file := range files {
		names = append(names, file.Name())
	}
	return names, err
}
