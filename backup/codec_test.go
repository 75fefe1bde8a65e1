package backup

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"filippo.io/age"

	"github.com/skiff-sh/skiff/fsm"
)

func newKey(t testing.TB) *age.X25519Identity {
	t.Helper()
	k, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// cheap is a passphrase's recipient that costs a test nothing.
func cheap(t testing.TB, passphrase string) age.Recipient {
	t.Helper()
	r, err := age.NewScryptRecipient(passphrase)
	if err != nil {
		t.Fatal(err)
	}
	r.SetWorkFactor(10)
	return r
}

func passphrase(t testing.TB, text string) Unlock {
	t.Helper()
	u, err := PassphraseUnlock([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func TestWrappedFiles(t *testing.T) {
	f := sample(t, 2000)
	_, plain := save(t, f)
	a, b := newKey(t), newKey(t)
	for _, c := range []struct {
		name     string
		compress bool
		encrypt  []age.Recipient
		unlock   Unlock
		locks    string
	}{
		{"compressed", true, nil, nil, ""},
		{"to a key", false, []age.Recipient{a.Recipient()}, Unlock{a}, "1 key"},
		{"to two keys", true, []age.Recipient{b.Recipient(), a.Recipient()}, Unlock{newKey(t), a}, "2 keys"},
		{"to a passphrase", true, []age.Recipient{cheap(t, "open sesame")}, passphrase(t, "open sesame"), "a passphrase"},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "s")
			saved, err := Save(t.Context(), source(f), path, SaveOptions{Compress: c.compress, Encrypt: c.encrypt})
			if err != nil {
				t.Fatal(err)
			}
			want := *plain
			want.Compressed, want.Encrypted, want.TotalSize = c.compress, c.encrypt != nil, fileSize(t, path)
			if *saved != want {
				t.Errorf("saved %+v, want %+v", *saved, want)
			}
			if c.compress != (want.TotalSize < plain.TotalSize/2) {
				t.Errorf("%d bytes, %d when plain", want.TotalSize, plain.TotalSize)
			}
			var last Step
			got, err := Verify(t.Context(), path, c.unlock, func(s Step) { last = s })
			if err != nil || *got != want || last != (Step{"verifying", want.TotalSize, want.TotalSize}) {
				t.Errorf("verified %+v, %v; last step %+v", got, err, last)
			}
			dir := filepath.Join(t.TempDir(), "data")
			r, err := Restore(t.Context(), path, dir, RestoreOptions{Unlock: c.unlock, Progress: func(s Step) { last = s }})
			if err != nil || r.Snapshot.Hash != plain.Hash || last.Bytes != want.TotalSize {
				t.Errorf("restored %+v, %v; last step %+v", r, err, last)
			}
			if c.encrypt == nil {
				return
			}
			if locks, err := Locks(path); err != nil || locks != c.locks {
				t.Errorf("Locks: %q, %v", locks, err)
			}
			for what, refused := range map[string]struct {
				unlock Unlock
				want   error
			}{
				"no key": {nil, ErrEncrypted}, "another key": {Unlock{newKey(t)}, ErrWrongKey},
				"another passphrase": {passphrase(t, "wrong"), ErrWrongKey},
			} {
				if _, err := Status(path, refused.unlock...); !errors.Is(err, refused.want) || !strings.Contains(err.Error(), path) {
					t.Errorf("%s: %v", what, err)
				}
				dir := filepath.Join(t.TempDir(), "data")
				if _, err := Restore(t.Context(), path, dir, RestoreOptions{Unlock: refused.unlock}); !errors.Is(err, refused.want) {
					t.Errorf("restore with %s: %v", what, err)
				}
				if _, err := os.Stat(dir); err == nil {
					t.Errorf("restore with %s made %s", what, dir)
				}
			}
		})
	}
}

func fileSize(t testing.TB, path string) int64 {
	t.Helper()
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return st.Size()
}

// TestDamageOfWrappedFiles flips bits and cuts files of each form: never does
// another content come out, and what is refused is called damaged or truncated.
func TestDamageOfWrappedFiles(t *testing.T) {
	f := sample(t, 20)
	_, plain := save(t, f)
	key := newKey(t)
	for name, o := range map[string]SaveOptions{
		"compressed": {Compress: true}, "encrypted": {Encrypt: []age.Recipient{key.Recipient()}},
		"both": {Compress: true, Encrypt: []age.Recipient{key.Recipient()}},
	} {
		path := filepath.Join(t.TempDir(), "s")
		if _, err := Save(t.Context(), source(f), path, o); err != nil {
			t.Fatal(err)
		}
		good, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		check := func(what string, content []byte, mayPass bool) {
			t.Helper()
			var info *Info
			r, err := NewReader(bytes.NewReader(content), Unlock{key})
			if err == nil {
				info, err = read(t.Context(), r, func() {}, nil)
				r.Close()
			}
			switch {
			case err == nil && (!mayPass || info.Hash != plain.Hash):
				t.Errorf("%s, %s: passed", name, what)
			case err != nil && !Refused(err) && !errors.Is(err, ErrWrongKey):
				t.Errorf("%s, %s: %v", name, what, err)
			}
		}
		for i := range good {
			for _, bit := range []byte{1, 0x20} {
				bad := bytes.Clone(good)
				bad[i] ^= bit
				// A bit that says nothing, such as of zstd's window, may be flipped.
				check(fmt.Sprintf("bit %#x of byte %d flipped", bit, i), bad, true)
			}
			check(fmt.Sprintf("cut to %d bytes", i), good[:i], false)
		}
		check("with more", append(bytes.Clone(good), "more"...), false)
		check("twice", append(bytes.Clone(good), good...), false)
	}
}

// TestErrorOfTheMedium is not told as damage of the content.
func TestErrorOfTheMedium(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	if _, err := Save(t.Context(), source(sample(t, 3000)), path, SaveOptions{Compress: true}); err != nil {
		t.Fatal(err)
	}
	good, _ := os.ReadFile(path)
	gone := errors.New("connection reset")
	r, err := NewReader(io.MultiReader(bytes.NewReader(good[:len(good)/2]), failing{gone}), nil)
	if err == nil {
		defer r.Close()
		_, err = read(t.Context(), r, func() {}, nil)
	}
	if !errors.Is(err, gone) || Refused(err) {
		t.Errorf("got %v", err)
	}
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

func TestReadKeys(t *testing.T) {
	dir := t.TempDir()
	key, other := newKey(t), newKey(t)
	hybrid, err := age.GenerateHybridIdentity()
	if err != nil {
		t.Fatal(err)
	}
	file := func(name, content string, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	secret := file("secret", "# made today\n"+key.String()+"\n"+hybrid.String()+"\n", 0o600)
	for _, c := range []struct {
		spec string
		n    int
		want string
	}{
		{key.Recipient().String(), 1, ""},
		{key.Recipient().String() + ", " + other.Recipient().String(), 2, ""},
		{file("public", "# all of us\n"+key.Recipient().String()+"\n\n"+other.Recipient().String()+"\n", 0o644), 2, ""},
		{secret, 2, ""},
		{"age1nonsense", 0, "age1nonsense"},
		{file("empty", "", 0o644), 0, "empty"},
		{filepath.Join(dir, "none"), 0, "no such file"},
		{file("ssh", "ssh-ed25519 AAAA me@here\n", 0o644), 0, "ssh"},
		{file("open", key.String(), 0o644), 0, "chmod 600"},
	} {
		got, err := ReadRecipients(c.spec)
		if len(got) != c.n || (err == nil) != (c.want == "") || (err != nil && !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %d recipients, %v", c.spec, len(got), err)
		}
	}
	if got, err := ReadIdentities(secret); err != nil || len(got) != 2 {
		t.Errorf("%d keys, %v", len(got), err)
	}
	broken := file("broken", "AGE-SECRET-KEY-1TYPO\n", 0o600)
	if _, err := ReadIdentities(broken); err == nil || !strings.Contains(err.Error(), broken) || strings.Contains(err.Error(), "TYPO") {
		t.Errorf("a malformed key: %v", err)
	}
	// A passphrase and a key exclude each other, which age itself refuses.
	_, err = Save(t.Context(), source(sample(t, 1)), filepath.Join(dir, "s"), SaveOptions{Encrypt: []age.Recipient{cheap(t, "a"), key.Recipient()}})
	if err == nil {
		t.Error("saved to a passphrase and a key")
	}
	if _, err := Open(dir, nil); !errors.Is(err, fsm.ErrNotSnapshot) {
		t.Errorf("a directory: %v", err)
	}
}
