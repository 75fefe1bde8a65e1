package backup

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"filippo.io/age"
)

var (
	// ErrEncrypted says that a file can't be read without a key.
	ErrEncrypted = errors.New("it is encrypted, and no key for it was given")
	// ErrWrongKey says that a file is encrypted with other keys than those given.
	ErrWrongKey = errors.New("it is encrypted with another key")
)

// Unlock opens encrypted files: keys or passphrases, of which one must fit. It
// has nothing to do with the cluster key, which seals single values within.
type Unlock []age.Identity

// passphraseWork makes deriving a key from a passphrase take 0.2 s and 64 MiB
// (age's own default of 18 takes 256 MiB, which a small server may not have).
const passphraseWork = 16

// ReadRecipients gives whom to encrypt to: spec is an age recipient (age1...),
// several separated by commas, or a file with one in each line. A file of age
// keys stands for their recipients.
func ReadRecipients(spec string) ([]age.Recipient, error) {
	var out []age.Recipient
	if strings.HasPrefix(spec, "age1") {
		for s := range strings.SplitSeq(spec, ",") {
			r, err := age.ParseRecipients(strings.NewReader(strings.TrimSpace(s)))
			if err != nil {
				return nil, fmt.Errorf("recipient %q: it is no age recipient: %w", s, err)
			}
			out = append(out, r...)
		}
		return out, nil
	}
	b, err := os.ReadFile(spec)
	if err != nil {
		return nil, fmt.Errorf("recipients: want age1... or a file: %w", err)
	}
	if !bytes.Contains(b, []byte("AGE-SECRET-KEY-")) {
		out, err := age.ParseRecipients(bytes.NewReader(b))
		if err != nil {
			return nil, fmt.Errorf("recipients: %s: %w", spec, err)
		}
		return out, nil
	}
	keys, err := ReadIdentities(spec)
	if err != nil {
		return nil, err
	}
	for _, k := range keys {
		switch k := k.(type) {
		case *age.X25519Identity:
			out = append(out, k.Recipient())
		case *age.HybridIdentity:
			out = append(out, k.Recipient())
		default:
			return nil, fmt.Errorf("recipients: %s: a key of type %T has no recipient", spec, k)
		}
	}
	return out, nil
}

// ReadIdentities reads age keys (AGE-SECRET-KEY-..., one a line) from a file that
// only its owner may read.
func ReadIdentities(path string) (Unlock, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("age key: %w", err)
	}
	if mode := st.Mode().Perm(); st.Mode().IsRegular() && mode&0o077 != 0 {
		return nil, fmt.Errorf("age key: %s has mode %04o, so others can read it: chmod 600 %s", path, mode, path)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("age key: %w", err)
	}
	keys, err := age.ParseIdentities(bytes.NewReader(b))
	if err != nil {
		// The library's text may quote the line, which may be a key.
		return nil, fmt.Errorf("age key: %s holds no line AGE-SECRET-KEY-..., or one that is malformed", path)
	}
	return keys, nil
}

// PassphraseRecipient encrypts to a passphrase. It must be the only recipient.
func PassphraseRecipient(passphrase []byte) (age.Recipient, error) {
	r, err := age.NewScryptRecipient(string(passphrase))
	if err != nil {
		return nil, fmt.Errorf("passphrase: %w", err)
	}
	r.SetWorkFactor(passphraseWork)
	return r, nil
}

// PassphraseUnlock opens what PassphraseRecipient, or age itself, encrypted.
func PassphraseUnlock(passphrase []byte) (Unlock, error) {
	i, err := age.NewScryptIdentity(string(passphrase))
	if err != nil {
		return nil, fmt.Errorf("passphrase: %w", err)
	}
	i.SetMaxWorkFactor(20) // 1 GiB: a foreign file must not take the machine
	return Unlock{i}, nil
}

// keeper wraps recipients and remembers the key of the file, so that Save can
// read back what it has encrypted to somebody else.
type keeper struct {
	age.Recipient
	key *[]byte
}

func (k keeper) WrapWithLabels(fileKey []byte) ([]*age.Stanza, []string, error) {
	*k.key = slices.Clone(fileKey)
	if r, ok := k.Recipient.(age.RecipientWithLabels); ok {
		return r.WrapWithLabels(fileKey)
	}
	stanzas, err := k.Recipient.Wrap(fileKey)
	return stanzas, nil, err
}

// keep wraps all recipients; the key is there once age.Encrypt has returned.
func keep(to []age.Recipient) (out []age.Recipient, key *[]byte) {
	key = new([]byte)
	for _, r := range to {
		out = append(out, keeper{r, key})
	}
	return out, key
}
