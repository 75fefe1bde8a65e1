package seal

import (
	"bytes"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestMain(m *testing.M) {
	scryptN = 1 << 10 // cheap
	os.Exit(m.Run())
}

func mustKey(t testing.TB, passphrase string) *Key {
	t.Helper()
	var p []byte
	if passphrase != "" {
		p = []byte(passphrase)
	}
	k, err := NewKey(p)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestKeyFile(t *testing.T) {
	for _, passphrase := range []string{"", "correct horse"} {
		k := mustKey(t, passphrase)
		path := filepath.Join(t.TempDir(), KeyFile)
		for range 2 { // the second replaces the first
			if err := WriteKey(path, k); err != nil {
				t.Fatal(err)
			}
		}
		if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("mode %v, %v", st.Mode(), err)
		}
		got, err := ReadKey(path, []byte("correct horse"))
		if err != nil {
			t.Fatal(err)
		}
		if got.ID() != k.ID() || got.raw != k.raw || (got.Sealed() != nil) != (passphrase != "") {
			t.Errorf("with passphrase %q another key came back", passphrase)
		}
		if b, _ := os.ReadFile(path); passphrase != "" && bytes.Contains(b, []byte(plainType)) {
			t.Error("the sealed file has the plain form")
		}
	}
}

func TestKeyFileIsRefused(t *testing.T) {
	plain, sealed := mustKey(t, ""), mustKey(t, "right")
	other := mustKey(t, "")
	damage := func(b []byte, change func(*pem.Block)) []byte {
		block, _ := pem.Decode(b)
		change(block)
		return pem.EncodeToMemory(block)
	}
	for _, c := range []struct {
		name       string
		content    []byte
		passphrase string
		mode       os.FileMode
		want       string
	}{
		{"mode", plain.Encode(), "", 0o644, "mode 0644"},
		{"group", plain.Encode(), "", 0o640, "chmod 600"},
		{"empty", nil, "", 0o600, "no cluster key"},
		{"half a file", plain.Encode()[:60], "", 0o600, "no cluster key"},
		{"half a key", damage(plain.Encode(), func(b *pem.Block) { b.Bytes = b.Bytes[:16] }), "", 0o600, "16 bytes"},
		{"a changed key", damage(plain.Encode(), func(b *pem.Block) { b.Bytes[0] ^= 1 }), "", 0o600, "damaged"},
		{"another key's ID", damage(plain.Encode(), func(b *pem.Block) { b.Headers["Key-Id"] = other.ID() }), "", 0o600, "damaged"},
		{"two keys", append(plain.Encode(), other.Encode()...), "", 0o600, "follows"},
		{"a certificate", []byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"), "", 0o600, "no cluster key"},
		{"no passphrase", sealed.File(), "", 0o600, "--passphrase-file"},
		{"wrong passphrase", sealed.File(), "wrong", 0o600, "does not open"},
		{"truncated and sealed", damage(sealed.File(), func(b *pem.Block) { b.Bytes = b.Bytes[:20] }), "right", 0o600, "does not open"},
		{"no salt", damage(sealed.File(), func(b *pem.Block) { delete(b.Headers, "Salt") }), "right", 0o600, "no salt"},
		{"a huge cost", damage(sealed.File(), func(b *pem.Block) { b.Headers["N"] = "1073741824" }), "right", 0o600, "too much"},
		{"a negative cost", damage(sealed.File(), func(b *pem.Block) { b.Headers["R"] = "-8" }), "right", 0o600, "has R"},
		{"another kdf", damage(sealed.File(), func(b *pem.Block) { b.Headers["Kdf"] = "md5" }), "right", 0o600, "does not know"},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), KeyFile)
			if err := os.WriteFile(path, c.content, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(path, c.mode); err != nil {
				t.Fatal(err)
			}
			var p []byte
			if c.passphrase != "" {
				p = []byte(c.passphrase)
			}
			_, err := ReadKey(path, p)
			if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), path) {
				t.Errorf("got %v, want the path and %q", err, c.want)
			}
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("more than a line: %v", err)
			}
		})
	}
}

func TestPassphraseFile(t *testing.T) {
	if p, err := ReadPassphrase(""); p != nil || err != nil {
		t.Errorf("no file: %q, %v", p, err)
	}
	path := filepath.Join(t.TempDir(), "p")
	for content, want := range map[string]string{"secret": "secret", "secret\n": "secret", " a b \r\n": " a b "} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if p, err := ReadPassphrase(path); string(p) != want || err != nil {
			t.Errorf("%q: %q, %v", content, p, err)
		}
	}
	if err := os.WriteFile(path, []byte("\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadPassphrase(path); err == nil || !strings.Contains(err.Error(), "empty") {
		t.Errorf("an empty line: %v", err)
	}
	if err := os.Chmod(path, 0o604); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadPassphrase(path); err == nil || !strings.Contains(err.Error(), "mode 0604") {
		t.Errorf("mode: %v", err)
	}
	if _, err := ReadPassphrase(path + "x"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no such file: %v", err)
	}
}

func TestUnwrapNeedsKeyAndName(t *testing.T) {
	k := mustKey(t, "")
	b, err := k.Wrap("a", []byte("content"))
	if err != nil {
		t.Fatal(err)
	}
	if p, err := k.Unwrap("a", b); string(p) != "content" || err != nil {
		t.Errorf("%q, %v", p, err)
	}
	if _, err := k.Unwrap("b", b); err == nil {
		t.Error("opened under another name")
	}
	if _, err := mustKey(t, "").Unwrap("a", b); err == nil || !strings.Contains(err.Error(), "another") {
		t.Errorf("opened with another key: %v", err)
	}
	if _, err := k.Unwrap("a", b[:5]); err == nil || !strings.Contains(err.Error(), "truncated") {
		t.Errorf("truncated: %v", err)
	}
}
