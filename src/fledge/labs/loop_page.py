def loop_page(out, total):
    return out
