package secrets

import (
	"fmt"

	"ringway/sip/certificate"
)

// ServerFiles are the files by which SIP over TLS with a server is read.
type ServerFiles struct {
	Name  string
	Names []string // host names and addresses that phones connect to

	Chain, Key, CA         string
	ClientChain, ClientKey string // empty: none
}

// ReadServer reads the files of a server, and checks that they fit. Its error is a *FileError.
func ReadServer(files Files, f ServerFiles) (s certificate.Source, err error) {
	s = certificate.Source{Name: f.Name, Names: f.Names}
	if s.Chain, err = ReadChain(files, f.Chain); err != nil {
		return s, err
	}
	if s.Key, err = ReadChainKey(files, f.Key, s.Chain); err != nil {
		return s, err
	}
	if err := CheckNames(f.Chain, s.Chain, f.Names); err != nil {
		return s, err
	}
	if s.CA, err = ReadCA(files, f.CA); err != nil {
		return s, err
	}
	if f.ClientChain == "" {
		return s, nil
	}
	if s.ClientChain, err = ReadChain(files, f.ClientChain); err != nil {
		return s, err
	}
	s.ClientKey, err = ReadChainKey(files, f.ClientKey, s.ClientChain)
	return s, err
}

// ReadChain reads a certificate with those that lead to its CA. Its error is a *FileError.
func ReadChain(files Files, path string) (certificate.PEM, error) {
	text, err := readPEM(files, path, certificate.MaxChain, anybody)
	if err != nil {
		return text, err
	}
	if _, err := certificate.ParseChain(text); err != nil {
		return text, &FileError{path, err.Error(), nil}
	}
	return text, nil
}

// ReadCA reads certificates of CAs. Its error is a *FileError.
func ReadCA(files Files, path string) (certificate.PEM, error) {
	text, err := readPEM(files, path, certificate.MaxCA, anybody)
	if err != nil {
		return text, err
	}
	if _, err := certificate.ParseCA(text); err != nil {
		return text, &FileError{path, err.Error(), nil}
	}
	return text, nil
}

// ReadChainKey reads the private key of a chain. Without a chain it is not checked whether the key fits. Its error is a
// *FileError.
func ReadChainKey(files Files, path string, chain certificate.PEM) (certificate.PEM, error) {
	text, err := readPEM(files, path, certificate.MaxKey, onlyOwner)
	if err != nil || chain == "" {
		return text, err
	}
	if _, err := certificate.ParsePair(chain, text); err != nil {
		return text, &FileError{path, err.Error(), nil}
	}
	return text, nil
}

// CheckNames says which name a certificate is not for. Its error is a *FileError.
func CheckNames(path string, chain certificate.PEM, names []string) error {
	leaf, err := certificate.ParseChain(chain)
	if err != nil {
		return &FileError{path, err.Error(), nil}
	}
	for _, name := range names {
		if err := certificate.Covers(leaf, name); err != nil {
			return &FileError{path, err.Error(), err}
		}
	}
	return nil
}

func readPEM(files Files, path string, limit int, who access) (certificate.PEM, error) {
	data, err := readFile(files, path, who)
	if err != nil {
		return "", err
	}
	if len(data) > limit {
		return "", &FileError{path, fmt.Sprintf("is too long (allowed: up to %d KiB)", limit>>10), nil}
	}
	return certificate.PEM(data), nil
}
