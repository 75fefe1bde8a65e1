package membership

import (
	"bytes"
	"context"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/skiff-sh/skiff/fsm/store"
)

func TestTokenText(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	tok := b.token(t, RoleServer)
	same, err := ParseToken(" " + tok.Text() + "\n")
	if err != nil || same != tok {
		t.Errorf("parsed %v, %v", same, err)
	}
	for text, want := range map[string]string{
		"":                              "no token",
		"skiff2" + tok.Text()[6:]:       "no token",
		strings.ToUpper(tok.Text()):     "no token",
		"skiff1.abc." + tok.ID + ".x":   "damaged",
		tok.Text()[:len(tok.Text())-26]: "damaged",
		"skiff1." + strings.Repeat("1", 52) + ".x.y": "damaged",
	} {
		if _, err := ParseToken(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %s", text, err, want)
		}
	}
	if strings.Contains(tok.String(), tok.secret) {
		t.Error("String shows the secret")
	}
}

func TestTokensAreListedWithoutSecretsAndDeleted(t *testing.T) {
	t.Parallel()
	b, ctx := newBench(t), context.Background()
	made, err := b.CreateToken(ctx, TokenRequest{Role: RoleAgent, TTL: time.Hour, Description: "rack 4"})
	if err != nil {
		t.Fatal(err)
	}
	forever, err := b.CreateToken(ctx, TokenRequest{Role: RoleServer})
	if err != nil {
		t.Fatal(err)
	}
	tok, _ := ParseToken(made.Token)
	b.store.View().Ascend("", "", func(kv *store.KeyValue) bool {
		if bytes.Contains(kv.Value, []byte(tok.secret)) {
			t.Errorf("%s holds the secret", kv.Key)
		}
		return true
	})
	list, err := b.Tokens(ctx)
	if err != nil || len(list) != 2 {
		t.Fatalf("%v, %v", list, err)
	}
	if out, _ := json.Marshal(list); bytes.Contains(out, []byte(tok.secret)) || bytes.Contains(out, []byte("hash")) {
		t.Errorf("the list shows %s", out)
	}
	for _, i := range list {
		switch i.ID {
		case made.ID:
			if i.Expires == nil || i.Description != "rack 4" || i.Role != RoleAgent {
				t.Errorf("%+v", i)
			}
		case forever.ID:
			if i.Expires != nil {
				t.Errorf("expires at %v", i.Expires)
			}
		}
	}
	if err := b.DeleteToken(ctx, made.Token); err != nil { // the whole token will do
		t.Fatal(err)
	}
	refusedWith(t, b.DeleteToken(ctx, made.ID), "there is no token")
	_, err = b.join(tok, agentRequest(t, "w", "id-w"))
	refusedWith(t, err, "the token is wrong or has expired")
}

// The leader's expiry deletes tokens a while after they have become useless.
func TestTokensExpire(t *testing.T) {
	t.Parallel()
	b, ctx := newBench(t), context.Background()
	tok := b.token(t, RoleAgent) // good for an hour
	b.offset = 50 * time.Minute
	if list, _ := b.Tokens(ctx); len(list) != 1 {
		t.Errorf("%d tokens before the end", len(list))
	}
	b.offset = 61 * time.Minute
	if list, _ := b.Tokens(ctx); len(list) != 0 {
		t.Errorf("%d tokens after the end", len(list))
	}
	_, err := b.Join(ctx, tok.bearer(), agentRequest(t, "w", "id-w"))
	refusedWith(t, err, "the token expired at")
	if due := b.store.Expired(time.Now().Add(90*time.Minute).Unix(), 10); len(due) != 0 {
		t.Error("forgotten so early that nobody could say that it has expired")
	}
	if due := b.store.Expired(time.Now().Add(26*time.Hour).Unix(), 10); len(due) != 1 || due[0].Key != tokenPrefix+tok.ID {
		t.Errorf("due after a day: %v", due)
	}
}

func TestTokenRequestsAreChecked(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	for want, r := range map[string]TokenRequest{
		`role "boss"`: {Role: "boss"},
		"ttl -1s":     {Role: RoleAgent, TTL: -time.Second},
		"ttl 1ms":     {Role: RoleAgent, TTL: time.Millisecond},
		"2000 bytes":  {Role: RoleAgent, Description: strings.Repeat("x", 2000)},
	} {
		_, err := b.CreateToken(context.Background(), r)
		refusedWith(t, err, want)
	}
}

func TestWrongTokensAreLimited(t *testing.T) {
	t.Parallel()
	now := time.Now()
	a := newAttempts(func() time.Time { return now })
	for i := range freeAttempts {
		if w := a.wait("x"); w > 0 {
			t.Fatalf("attempt %d waits %s", i, w)
		}
		a.failed("x")
	}
	if w := a.wait("x"); w <= 0 || w > attemptInterval {
		t.Errorf("waits %s", w)
	}
	if w := a.wait("y"); w != 0 {
		t.Errorf("another address waits %s", w)
	}
	now = now.Add(attemptInterval)
	if w := a.wait("x"); w > 0 {
		t.Errorf("waits %s after the interval", w)
	}
	for i := range 3 * maxAttempters {
		a.failed(strings.Repeat("z", i%97) + string(rune('a'+i%26)) + time.Duration(i).String())
	}
	if len(a.full) > maxAttempters {
		t.Errorf("%d addresses are remembered", len(a.full))
	}
}

func TestWrongTokensAreLimitedOnThePort(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.stop()
	tok := b.token(t, RoleAgent)
	wrong := tok
	wrong.secret = "guess"
	for range freeAttempts {
		_, err := b.join(wrong, agentRequest(t, "w", "id-w"))
		refusedWith(t, err, "the token is wrong")
	}
	_, err := b.join(tok, agentRequest(t, "w", "id-w"))
	refusedWith(t, err, "too many wrong tokens from 127.0.0.1")
	b.mu.Lock()
	b.offset = attemptInterval
	b.mu.Unlock()
	if _, err := b.join(tok, agentRequest(t, "w", "id-w")); err != nil {
		t.Errorf("after the wait: %v", err)
	}
}
